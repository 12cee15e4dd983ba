"""An evaluation's figures as tables for a person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soka_cli.run.lines import read_lines
from soka_cli.stages.agreement import Agreement
from soka_cli.stages.exam import Exam
from soka_cli.stages.outcome import Cell, Table

SHOWN_DIFFERENCES = 5


def scores_table(exam: Exam, scores: Sequence[dict[str, Any]]) -> Table:
    """One row a model: each metric with its standard error."""
    columns = ["model", "items", *(column for metric in exam.task.metrics for column in (metric, "+-")), "tokens/s", "seconds"]
    rows: list[tuple[Cell, ...]] = [
        (
            one["model"],
            one["items"],
            *(one["metrics"][metric][part] for metric in exam.task.metrics for part in ("value", "stderr")),
            one["tokens_per_s"],
            one["seconds"],
        )
        for one in scores
    ]
    return Table(f"{exam.name} (task {exam.task.name}, protocol {exam.protocol.name})", tuple(columns), tuple(rows))


def agreement_table(name: str, found: Agreement) -> Table:
    """merged against adapter, and the first items that differ."""
    title = f"{name}, merged against adapter: equal {found.equal} of {found.items}"
    if found.differences:
        title += f", {found.near_ties} of the others near-ties"
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (one.id, one.smallest_gap, "near-tie" if one.near_tie else "differs", "same" if one.same_verdict else "other")
        for one in found.differences[:SHOWN_DIFFERENCES]
    )
    return Table(title, ("differing item", "smallest logit gap", "kind", "verdict"), rows)


def answers_table(exam: Exam, kind: str, predictions: Path, count: int) -> Table:
    """The first `count` wrong and `count` right answers by the headline metric."""
    headline = exam.task.metrics[0]
    rows = read_lines(predictions)
    shown = [row for verdict in (False, True) for row in [one for one in rows if one["correct"][headline] is verdict][:count]]
    cells: tuple[tuple[Cell, ...], ...] = tuple(
        ("right" if row["correct"][headline] else "wrong", row["id"], row["gold"], row["extracted"], row["completion"]) for row in shown
    )
    return Table(f"{exam.name}, {kind}: answers by {headline}", ("verdict", "item", "gold", "extracted", "completion"), cells)
