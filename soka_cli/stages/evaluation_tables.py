"""An evaluation's figures as tables for a person."""

from collections.abc import Iterator, Sequence
from typing import Any

from soka_cli.stages.agreement import Agreement
from soka_cli.stages.exam import Exam
from soka_cli.stages.outcome import Cell, Table

SHOWN_DIFFERENCES = 5


def scores_table(exam: Exam, scores: Sequence[dict[str, Any]]) -> Table:
    """One row a model: each metric with its standard error over items."""
    columns = ("model", "items", *exam.metrics, "near-ties", "tokens/s", "seconds")
    rows: list[tuple[Cell, ...]] = [
        (
            one["model"],
            one["items"],
            *(with_error(**one["metrics"][metric]) for metric in exam.metrics),
            one.get("near_ties", {}).get("count"),
            one["tokens_per_s"],
            one["seconds"],
        )
        for one in scores
    ]
    drawn = f", {exam.entry.samples} samples at temperature {exam.entry.temperature:g}" if exam.entry.temperature else ""
    return Table(f"{exam.name} (task {exam.task.name}, protocol {exam.protocol.name}{drawn})", columns, tuple(rows))


def group_tables(title: str, scores: dict[str, Any]) -> Iterator[Table]:
    """One table a kind of group, one row a group."""
    for kind, groups in scores["groups"].items():
        rows: list[tuple[Cell, ...]] = [
            (name, one["items"], *(with_error(**figure) for figure in one["metrics"].values())) for name, one in groups.items()
        ]
        yield Table(f"{title} by {kind}", (kind, "items", *scores["metrics"]), tuple(rows))


def with_error(value: float, stderr: float | None) -> str:
    """`0.985 +- 0.009`; the value alone where a single item has no spread."""
    return f"{value:.3f}" if stderr is None else f"{value:.3f} +- {stderr:.3f}"


def agreement_tables(name: str, found: Agreement) -> Iterator[Table]:
    """merged against adapter in one row, and the first items that differ, if any."""
    other = len(found.differences) - found.near_ties
    yield Table(
        f"{name}, merged against adapter: equal {found.equal} of {found.items}",
        ("items", "equal", "near-ties", "other differences"),
        ((found.items, found.equal, found.near_ties, other),),
    )
    if found.differences:
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (one.id, one.smallest_gap, "near-tie" if one.near_tie else "other", "same" if one.same_verdict else "another")
            for one in found.differences[:SHOWN_DIFFERENCES]
        )
        columns = ("item", "smallest logit gap", "difference", "verdict")
        yield Table(f"{name}, first {len(rows)} items that adapter and merged answer otherwise", columns, rows)
