"""From judged answers to figures: what evaluation and scoring share."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soka_cli.run.write import damaged
from soka_cli.tasks.base import Task

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


def judged(task: Task, completion: str, gold: str, stops: Sequence[str]) -> dict[str, Any]:
    """The end of a prediction row: `extracted`, `gold` and `correct`."""
    judgement = task.judge(completion, gold, stops)
    return {"extracted": judgement.extracted, "gold": gold, "correct": judgement.correct}


def summarise(rows: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
    """`n`, `items`, `metrics` and `groups` of scores.json.

    A metric's value is the mean over items of the share of an item's samples that are right; its stderr is the sample standard
    deviation over items / sqrt(items), None for a single item, whose spread is unknown.
    """
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
        "groups": {},
    }


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None where there is one."""
    count = len(values)
    if count < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (count - 1) / count)


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
