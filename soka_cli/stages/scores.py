"""From judged answers to figures: what evaluation and scoring share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soka_cli.run.write import damaged
from soka_cli.tasks.base import Example, Judgement, Task
from soka_cli.tasks.code_task import PASS_AT_1, CodeTask
from soka_cli.tasks.mean import mean, standard_error
from soka_cli.tasks.pass_at_k import pass_at_k
from soka_cli.tasks.program import Postprocessing

Prediction = dict[str, Any]

FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "sample": int,
    "completion": str,
    "gold": str,
    "correct": dict,
    "extracted": (str, type(None)),
    "stop_reason": (str, type(None)),
    "prompt_sha256": (str, type(None)),
}


def judged_all(
    task: Task,
    answers: Sequence[tuple[str, Example]],
    stops: Sequence[str],
    readings: Sequence[str],
    how: Postprocessing,
    *,
    unsafe: bool = False,
    told: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """`judged` for many completions; programs are judged several at a time.

    Args:
        how: what becomes of a completion before a program is run.
        unsafe: whether programs run even where nothing isolates them.
        told: called as verdicts come.
    """
    if isinstance(task, CodeTask):
        found = task.judge_all(answers, stops, readings, how, unsafe=unsafe, told=told)
        return [row_end(judgement, example) for judgement, (_, example) in zip(found, answers, strict=True)]
    ends = []
    for completion, example in answers:
        ends.append(row_end(task.judge(completion, example, stops, readings), example))
        told()
    return ends


def row_end(judgement: Judgement, example: Example) -> dict[str, Any]:
    """The end of a prediction row: `extracted`, `gold`, `correct`, and `why` and more where the judge has something to say."""
    row = {"extracted": judgement.extracted, "gold": example.gold, "correct": judgement.correct}
    return row | ({"why": judgement.why} if judgement.why is not None else {}) | dict(judgement.details)


def summarise(rows: Sequence[Prediction], metrics: Sequence[str], groups: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    """`n`, `items`, `metrics` and `groups` of scores.json.

    Args:
        groups: by item id, the groups that the item belongs to; each is counted apart under its kind and name.

    A metric's value is the mean over items of the share of an item's samples that are right; its stderr is the sample standard
    deviation over items / sqrt(items), None for a single item, whose spread is unknown.
    """
    members: dict[str, dict[str, list[Prediction]]] = {}
    for row in rows:
        for kind, name in (groups or {}).get(row["id"], {}).items():
            members.setdefault(kind, {}).setdefault(name, []).append(row)
    apart = {kind: {name: _figures(some, metrics) for name, some in sorted(named.items())} for kind, named in sorted(members.items())}
    return _figures(rows, metrics) | {"groups": apart}


def _figures(rows: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
    items: dict[str, list[Prediction]] = {}
    for row in rows:
        items.setdefault(row["id"], []).append(row)
    shares = {metric: [share(metric, samples) for samples in items.values()] for metric in metrics}
    return {
        "n": len(rows),
        "items": len(items),
        "metrics": {metric: {"value": mean(values), "stderr": standard_error(values)} for metric, values in shares.items()},
    }


def share(metric: str, samples: Sequence[Prediction]) -> float:
    """An item's share of right samples; for pass@k the chance that one of k samples drawn is right."""
    k = draws(metric)
    right = sum(bool(row["correct"][metric if k is None else PASS_AT_1]) for row in samples)
    return right / len(samples) if k is None else pass_at_k(len(samples), right, k)


def draws(metric: str) -> int | None:
    """The k of a metric pass@k; None for another."""
    name, _, k = metric.partition("@")
    return int(k) if name == "pass" and k.isdecimal() else None


def judged_metrics(metrics: Sequence[str]) -> list[str]:
    """The metrics that a prediction row judges, where these are those of scores.json: any pass@k comes of one verdict, pass@1."""
    return list(dict.fromkeys(metric if draws(metric) is None else PASS_AT_1 for metric in metrics))


def check_predictions(rows: Sequence[Prediction], path: Path, metrics: Sequence[str]) -> None:
    """Refuse rows of predictions.jsonl that are not as they were written: SokaError (exit 5) naming file and line."""
    hint = "restore the file from a copy, or repeat the evaluation with --force"
    seen: set[tuple[str, int]] = set()
    for number, row in enumerate(rows, start=1):
        wrong = [name for name, kind in FIELDS.items() if name not in row or not isinstance(row[name], kind)]
        if wrong:
            raise damaged(path, f"line {number} has no proper {', '.join(wrong)}", hint)
        if sorted(row["correct"]) != sorted(metrics):
            raise damaged(path, f"line {number} judges {', '.join(row['correct']) or 'nothing'}, not {', '.join(metrics)}", hint)
        if (key := (row["id"], row["sample"])) in seen:
            raise damaged(path, f"line {number} answers item {key[0]}, sample {key[1]}, a second time", hint)
        seen.add(key)
