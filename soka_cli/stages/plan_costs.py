"""The part of a plan that says what a run takes: per GPU, in time, on the disk, and for its evaluation."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import Dimensions
from soka_cli.stages.effort import disk, evaluation, measured_speed, operations_a_token
from soka_cli.stages.length import Length
from soka_cli.stages.memory import BYTES, estimate
from soka_cli.stages.outcome import Cell, Table
from soka_cli.stages.per_device import replicated, sharded
from soka_cli.stages.sizes import AdapterSizes

DISK_WORDS = {
    "decompose": "start (decompose)",
    "checkpoint": "one checkpoint",
    "checkpoints": "checkpoints, all that lie there at once",
    "adapter": "result of training",
    "merged": "merged model",
    "total": "in all",
}


def cost_figures(
    context: StageContext, base: Dimensions, sizes: AdapterSizes, steps: Length, *, world: int, tokens_per_s: float | None
) -> dict[str, Any]:
    """`per_gpu`, `effort`, `disk` and `evaluation`, as plan.json has them, at the largest ranks that a rule may choose."""
    recipe = context.recipe
    memory = estimate(recipe, base, sizes, world=world)
    trained = base.parameters if recipe.adapter.method == "full" else sizes.trained
    ways = {"ddp": replicated(memory, trained, world), "fsdp2": sharded(memory, recipe, base, sizes, world)}
    room = disk(recipe, base, sizes)
    width = BYTES[recipe.model.dtype]
    return {
        "per_gpu": {"processes": world, **{name: {**asdict(one), "total": one.total} for name, one in ways.items()}},
        "effort": effort_figures(context, base, sizes, steps, tokens_per_s),
        "disk": {**asdict(room), "total": room.total},
        "evaluation": [evaluation(entry, base, width) for entry in recipe.eval],
    }


def effort_figures(
    context: StageContext, base: Dimensions, sizes: AdapterSizes, steps: Length, tokens_per_s: float | None
) -> dict[str, Any]:
    """Operations and time; null where tokens or speed are not known. `speed_from` says given or measured, by this run's metrics.jsonl."""
    one = operations_a_token(context.recipe, base, sizes)
    tokens = steps.tokens or steps.tokens_at_most
    measured = measured_speed(context.layout.metrics) if tokens_per_s is None else None
    speed = tokens_per_s if tokens_per_s is not None else measured
    return {
        "operations_a_token": one,
        "operations": None if tokens is None else one * tokens,
        "tokens_are_at_most": steps.tokens is None,
        "tokens_per_s": speed,
        "speed_from": None if speed is None else "given" if measured is None else "measured",
        "seconds": None if speed is None or tokens is None else tokens / speed,
    }


def cost_tables(figures: dict[str, Any]) -> tuple[Table, ...]:
    rows: list[tuple[Cell, ...]] = [(DISK_WORDS[name], round(value / 1e9, 3)) for name, value in figures["disk"].items() if value]
    tables = [Table("On the disk", ("", "GB"), tuple(rows))]
    if figures["evaluation"]:
        columns = (
            "benchmark",
            "items",
            "tokens each, at most",
            "tokens a model, at most",
            "PFLOP for all three",
            "keys and values of a batch, GB",
        )
        lines = tuple(
            (
                one["name"],
                one["items"],
                one["max_new_tokens"],
                one["tokens_at_most"],
                None if one["operations_at_most"] is None else one["operations_at_most"] / 1e15,
                one["cache_bytes"] / 1e9,
            )
            for one in figures["evaluation"]
        )
        tables.append(Table("Evaluation of base, adapter and merged model", columns, lines))
    return tuple(tables)


def effort_note(figures: dict[str, Any]) -> str:
    """Operations, and how long they take at the known speed."""
    effort = figures["effort"]
    each = f"{effort['operations_a_token'] / 1e9:,.3g} GFLOP a token"
    if effort["operations"] is None:
        return each
    bound = "at most " if effort["tokens_are_at_most"] else ""
    total = f"{each}, {bound}{effort['operations'] / 1e15:,.4g} PFLOP in all"
    if effort["seconds"] is None:
        return f"{total}; time: give --tokens-per-s, or plan a run that has trained some steps"
    took = timedelta(seconds=round(effort["seconds"]))
    return f"{total}; {bound}{took} at {effort['tokens_per_s']:,.0f} tokens/s ({effort['speed_from']})"


def truncation_note(steps: Length) -> Sequence[str]:
    """Where the rows' fate cannot be told; where it can, the table of rows tells it."""
    if steps.ledger is not None:
        return ()
    return ("rows that will be cut: not known; it needs the data and the tokenizer in folders here",)
