"""Stage compare: finished runs side by side, with what makes the comparison fair or unfair."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.last import RUNS
from soka_cli.run.reporter import Reporter, SilentReporter
from soka_cli.stages.comparison import Comparison
from soka_cli.stages.comparison_page import front_notes, sections, tables
from soka_cli.stages.contestant import contestants
from soka_cli.stages.fairness import marks, obstacles, refuse_unfair
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.page import Page, write_page
from soka_cli.stages.sweep_record import best_runs, rates_tried

STAGE = "compare"
SCHEMA_VERSION = 1
DEFAULT_FOLDER = RUNS / "comparison"


def compare(
    roots: Sequence[Path],
    *,
    out: Path | None = None,
    unfair: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> Outcome:
    """Put runs side by side, and write the page: compare.html, compare.md, compare.json and plots/*.svg.

    Args:
        roots: run directories; a sweep's stands for the best run of each of its methods.
        out: the page's folder, runs/comparison if None; replaced as a whole.
        unfair: show runs of other data or another base all the same.

    Raises:
        SokaError: exit 2, fewer than two runs, or runs that cannot be compared; exit 5, one of them is no trained run, or is damaged.
    """
    roots = list(dict.fromkeys(Path(os.path.normpath(run)) for root in roots for run in best_runs(root) or [root]))
    if len(roots) < 2:
        raise SokaError(
            "soka compare needs two runs at least",
            hint="soka compare runs/demo runs/demo-lora",
            exit_code=ExitCode.USAGE,
        )
    runs = [replace(run, trials=rates_tried(run.root)) for run in contestants(roots)]
    if not unfair:
        refuse_unfair(runs)
    comparison = Comparison.of(runs)
    warnings = (*obstacles(runs), *marks(runs))
    for sentence in warnings:
        (reporter or SilentReporter()).warn(sentence)
    figures = {"schema_version": SCHEMA_VERSION, "command": command, **comparison.figures(), "marks": list(warnings)}
    page = Page(
        title=" and ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} runs compared",
        subtitle=f"{runs[0].recipe.model.name} · {', '.join(str(run.root) for run in runs)}",
        sections=tuple(sections(comparison, command)),
        warnings=warnings,
    )
    written = write_page(out or DEFAULT_FOLDER, STAGE, page, figures)
    return Outcome(
        stage=STAGE,
        status="done",
        figures={**figures, "page": str(written)},
        tables=tuple(tables(comparison)),
        notes=(*front_notes(comparison), f"the page: {written}"),
    )
