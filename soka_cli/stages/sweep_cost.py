"""What a sweep will cost, before anything is computed."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soka_cli.recipe.load import LoadedRecipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Table
from soka_cli.stages.plan import plan, span_text
from soka_cli.stages.sweep_points import Point
from soka_cli.stages.templates import duration, gigabytes


@dataclass(frozen=True)
class Cost:
    """One run's: parameters {from, to}, steps, tokens (at most so many where the data is not at hand), operations, bytes of disk."""

    point: Point
    parameters: dict[str, int]
    steps: int | None
    tokens: int | None
    operations: float | None
    disk: int


def cost(context: StageContext, point: Point, *, merges: bool) -> Cost:
    """By the plan of the run's recipe; `merges` says whether it writes a merged model. Raises what `plan` raises."""
    loaded = LoadedRecipe(point.recipe, point.name, context.loaded.path, context.loaded.source_text, {})
    with tempfile.TemporaryDirectory(prefix="soka-sweep-") as folder:
        figures = plan(replace(context, loaded=loaded, layout=RunLayout(Path(folder)), reporter=SilentReporter())).figures
    training = figures["training"]
    tokens = training["tokens"] or training["tokens_at_most"]
    operations = None if tokens is None else float(figures["effort"]["operations_a_token"] * tokens)
    disk = figures["disk"]["total"] - (0 if merges else figures["disk"]["merged"])
    return Cost(point, figures["totals"]["parameters"], training["steps"], tokens, operations, disk)


def cost_table(costs: Sequence[Cost]) -> Table:
    rows = tuple((one.point.name, one.point.method, span_text(one.parameters), one.steps, one.tokens) for one in costs)
    return Table("What would run", ("run", "method", "parameters", "steps", "tokens"), rows)


def totals(costs: Sequence[Cost], done: Sequence[str], tokens_per_s: float | None) -> dict[str, Any]:
    """Sums over the runs that are not done; seconds by the speed of the sweep's own finished runs, None before there are any."""
    left = [one for one in costs if one.point.name not in done]
    tokens, operations, steps = ([getattr(one, name) for one in left] for name in ("tokens", "operations", "steps"))
    known = all(value is not None for value in tokens)
    return {
        "runs": len(costs),
        "runs_left": len(left),
        "steps": None if None in steps else sum(steps),
        "tokens": sum(tokens) if known else None,
        "operations": sum(operations) if known else None,
        "disk_bytes": sum(one.disk for one in left),
        "tokens_per_s": tokens_per_s,
        "seconds": sum(tokens) / tokens_per_s if known and tokens_per_s else None,
    }


def totals_note(found: dict[str, Any], jobs: int) -> str:
    """The sums in a sentence."""
    amount = "tokens not known before the data is there"
    if found["tokens"] is not None:
        amount = f"{found['tokens']:,} tokens, about {found['operations']:.2g} operations"
    steps = "" if found["steps"] is None else f"{found['steps']:,} steps, "
    time = "the time shows when a first run is done"
    if found["seconds"] is not None:
        time = f"about {duration(found['seconds'] / jobs)} of training at the measured {found['tokens_per_s']:,.0f} tokens a second"
        time += f", {jobs} at a time" if jobs > 1 else ""
    return f"{found['runs_left']} of {found['runs']} runs to do: {steps}{amount}, {gigabytes(found['disk_bytes'])} of disk at most; {time}"


def measured_speed(speeds: Sequence[float]) -> float | None:
    return statistics.median(speeds) if speeds else None
