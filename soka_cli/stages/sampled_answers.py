"""Some right and some wrong answers of each evaluation, for people to read."""

import random
from collections.abc import Sequence
from typing import Any

from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.stages.findings import Score
from soka_cli.stages.scores import Prediction, check_predictions, judged_metrics

PREFERRED = ("adapter", "merged", "base")  # whose answers are shown, the first that was asked
EACH = 2  # right ones, and as many wrong ones
LONGEST = 800  # characters of a completion


def sampled_answers(layout: RunLayout, scores: Sequence[Score], seed: int) -> list[dict[str, Any]]:
    """Rows of evaluation, model, metric, right, id, completion, cut (whether it was longer), extracted, gold and why; the same for a
    seed. Items are drawn, and then stand in the order in which they were asked.

    Raises:
        SokaError: exit 5, a damaged predictions.jsonl.
    """
    found = []
    for name in dict.fromkeys(score.name for score in scores):
        asked = {score.kind: score for score in scores if score.name == name and layout.predictions(name, score.kind).is_file()}
        kind = next((kind for kind in (*PREFERRED, *asked) if kind in asked), None)
        if kind is None:
            continue
        path, metrics = layout.predictions(name, kind), judged_metrics(list(asked[kind].scores.metrics))
        rows = read_lines(path)
        check_predictions(rows, path, metrics)
        for right in (True, False):
            some = [row for row in rows if bool(row["correct"][metrics[0]]) == right] if metrics else []
            chosen = sorted(random.Random(f"{seed} {name} {right}").sample(range(len(some)), min(EACH, len(some))))
            found += [shown(some[index], evaluation=name, model=kind, metric=metrics[0], right=right) for index in chosen]
    return found


def shown(row: Prediction, **about: Any) -> dict[str, Any]:
    completion = row["completion"]
    return {
        **about,
        "id": row["id"],
        "completion": completion[:LONGEST],
        "cut": len(completion) > LONGEST,
        "extracted": row["extracted"],
        "gold": row["gold"],
        "why": row.get("why"),
    }
