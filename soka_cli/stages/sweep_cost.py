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
    """One run's: parameters {from, to}, steps, tokens (at most so many where the data is not at hand), operations, bytes of disk; and of
    its evaluation, the most tokens that the models write and the operations of that, None where the items are not known."""

    point: Point
    parameters: dict[str, int]
    steps: int | None
    tokens: int | None
    operations: float | None
    disk: int
    answers: int | None
    answering: float | None


def cost(context: StageContext, point: Point, *, stages: str) -> Cost:
    """By the plan of the run's recipe; `stages` says what is done of it: train, eval or run. Raises what `plan` raises."""
    loaded = LoadedRecipe(point.recipe, point.name, context.loaded.path, context.loaded.source_text, {})
    with tempfile.TemporaryDirectory(prefix="soka-sweep-") as folder:
        figures = plan(replace(context, loaded=loaded, layout=RunLayout(Path(folder)), reporter=SilentReporter())).figures
    training = figures["training"]
    tokens = training["tokens"] or training["tokens_at_most"]
    operations = None if tokens is None else float(figures["effort"]["operations_a_token"] * tokens)
    disk = figures["disk"]["total"] - (0 if stages == "run" else figures["disk"]["merged"])
    answers, answering = answering_cost(figures["evaluation"], stages)
    return Cost(point, figures["totals"]["parameters"], training["steps"], tokens, operations, disk, answers, answering)


def answering_cost(entries: Sequence[dict[str, Any]], stages: str) -> tuple[int | None, float | None]:
    """Tokens written at most and their operations: none without an evaluation, of the adapter alone (eval), or of all models (run)."""
    if stages == "train":
        return 0, 0.0
    if any(entry["tokens_at_most"] is None for entry in entries):
        return None, None
    models = [entry["models"] if stages == "run" else 1 for entry in entries]
    tokens = sum(count * entry["tokens_at_most"] for count, entry in zip(models, entries, strict=True))
    share = [count / entry["models"] for count, entry in zip(models, entries, strict=True)]
    return tokens, float(sum(part * entry["operations_at_most"] for part, entry in zip(share, entries, strict=True)))


def cost_table(costs: Sequence[Cost]) -> Table:
    rows = tuple((one.point.name, one.point.method, span_text(one.parameters), one.steps, one.tokens) for one in costs)
    return Table("What would run", ("run", "method", "parameters", "steps", "tokens"), rows)


def totals(costs: Sequence[Cost], done: Sequence[str], tokens_per_s: float | None) -> dict[str, Any]:
    """Sums over the runs that are not done; seconds of training by the speed of the sweep's finished runs, None before there are any."""
    left = [one for one in costs if one.point.name not in done]
    tokens = summed([one.tokens for one in left])
    return {
        "runs": len(costs),
        "runs_left": len(left),
        **sums(left),
        "tokens_per_s": tokens_per_s,
        "seconds": tokens / tokens_per_s if tokens is not None and tokens_per_s else None,
    }


def sums(costs: Sequence[Cost]) -> dict[str, Any]:
    """Each None where it is not known of one of the runs."""
    return {
        "steps": summed([one.steps for one in costs]),
        "tokens": summed([one.tokens for one in costs]),
        "operations": summed([one.operations for one in costs]),
        "answer_tokens_at_most": summed([one.answers for one in costs]),
        "answer_operations_at_most": summed([one.answering for one in costs]),
        "disk_bytes": sum(one.disk for one in costs),
    }


def summed(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def totals_note(found: dict[str, Any], jobs: int) -> str:
    """The sums in a sentence."""
    time = "the time shows when a first run is done"
    if found["seconds"] is not None:
        time = f"about {duration(found['seconds'] / jobs)} of training at the measured {found['tokens_per_s']:,.0f} tokens a second"
        time += f", {jobs} at a time" if jobs > 1 else ""
    return f"{found['runs_left']} of {found['runs']} runs to do: {amounts(found)}; {time}"


def seeds_note(found: dict[str, Any], seeds: Sequence[int]) -> str:
    """What `sweep.best_seeds` adds, which only the grid's results can tell exactly."""
    which = f"then {len(seeds)} more seeds of each method's best setting"
    return f"{which}, {found['runs']} runs that are not counted above: at most {amounts(found)}"


def amounts(found: dict[str, Any]) -> str:
    """Steps, tokens and operations of training, what evaluation adds, and disk."""
    training = "tokens not known before the data is there"
    if found["tokens"] is not None:
        training = f"{found['tokens']:,} tokens, about {found['operations']:.2g} operations"
    steps = "" if found["steps"] is None else f"{found['steps']:,} steps, "
    answers = ""
    if found["answer_tokens_at_most"] is None:
        answers = "; evaluation on top, of items that are not known before the data is there"
    elif found["answer_tokens_at_most"]:
        tokens, operations = found["answer_tokens_at_most"], found["answer_operations_at_most"]
        answers = f"; evaluation writes at most {tokens:,} tokens on top, {operations:.2g} operations"
    return f"{steps}{training}{answers}; {gigabytes(found['disk_bytes'])} of disk at most"


def measured_speed(speeds: Sequence[float]) -> float | None:
    return statistics.median(speeds) if speeds else None
