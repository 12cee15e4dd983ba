"""What the held-out losses of a run decide: which step is the best so far, and whether going on is worth it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from soka_cli.recipe.schema import EarlyStoppingSection

Rows = Sequence[Mapping[str, Any]]


def best_step(rows: Rows) -> int | None:
    """The step of the lowest `eval_loss`, the first of those that are equal; None before the first reading."""
    read = [(row["eval_loss"], row["step"]) for row in rows if "eval_loss" in row]
    return min(read)[1] if read else None


def stopped_early(rows: Rows, rule: EarlyStoppingSection | None) -> int | None:
    """The step at which `patience` readings in a row have not been lower than the best before them by more than `min_improvement`.

    The untrained start is the first reading. Depends on the rows of metrics.jsonl alone, so a resumed run decides as an undisturbed one.
    """
    if rule is None:
        return None
    best, waited = math.inf, 0
    for row in rows:
        for loss in (row[name] for name in ("eval_loss_before", "eval_loss") if name in row):
            waited = 0 if loss < best - rule.min_improvement else waited + 1
            best = min(best, loss)
            if waited >= rule.patience:
                return int(row["step"])
    return None
