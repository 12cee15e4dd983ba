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
from soka_cli.stages.sweep_record import best_runs, is_a_sweep_s_own, rates_tried

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
        roots: run directories; a sweep's stands for the runs of each method's best setting. What else lies in a sweep directory, as
            runs/sweep/* names it, is left out with a warning.
        out: the page's folder, runs/comparison if None; replaced as a whole.
        unfair: show runs of other data or another base all the same.

    Raises:
        SokaError: exit 2, fewer than two runs, or runs that cannot be compared; exit 5, one of them is no trained run, or is damaged.
    """
    reporter = reporter or SilentReporter()
    roots = runs_of(roots, reporter)
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
        reporter.warn(sentence)
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


def runs_of(roots: Sequence[Path], reporter: Reporter) -> list[Path]:
    """The run directories that are meant, each once."""
    named = [Path(os.path.normpath(root)) for root in roots]
    if others := [path for path in named if is_a_sweep_s_own(path)]:
        reporter.warn(f"left out, no run: {', '.join(map(str, others))}")
    return list(dict.fromkeys(run for path in named if path not in others for run in best_runs(path) or [path]))
