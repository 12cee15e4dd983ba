"""From judged answers to figures: what evaluation and scoring share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soka_cli.run.write import damaged
from soka_cli.tasks.base import Example, Task
from soka_cli.tasks.mean import mean, standard_error

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


def judged(task: Task, completion: str, example: Example, stops: Sequence[str], readings: Sequence[str]) -> dict[str, Any]:
    """The end of a prediction row: `extracted`, `gold`, `correct`, and `why` where the judge has something to say."""
    judgement = task.judge(completion, example, stops, readings)
    row = {"extracted": judgement.extracted, "gold": example.gold, "correct": judgement.correct}
    return row | ({"why": judgement.why} if judgement.why is not None else {})


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
    shares = {
        metric: [sum(bool(row["correct"][metric]) for row in samples) / len(samples) for samples in items.values()] for metric in metrics
    }
    return {
        "n": len(rows),
        "items": len(items),
        "metrics": {metric: {"value": mean(values), "stderr": standard_error(values)} for metric, values in shares.items()},
    }


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
