"""What the plan said of a run beside what was measured: trained parameters, and the peak memory of training."""

from typing import Any

from soka_cli.errors import SokaError
from soka_cli.stages.context import StageContext
from soka_cli.stages.findings import Findings


def planned_and_measured(context: StageContext, findings: Findings) -> list[dict[str, Any]]:
    """Rows of quantity, unit, planned {from, to} (None where the base's sizes are not at hand), measured (None before training) and
    ratio, measured / the plan's upper end. The plan is made anew from the recipe, as `soka plan` makes it."""
    memory = max((step.memory_bytes for step in findings.steps if step.memory_bytes is not None), default=None)
    measured = {"trained parameters": findings.training.get("trainable_parameters"), "memory": memory}
    plans = planned(context)
    rows = []
    for quantity, unit in (("trained parameters", "parameters"), ("memory", "bytes")):
        span, found = plans.get(quantity), measured[quantity]
        ratio = found / span["to"] if span and span["to"] and found is not None else None
        rows.append({"quantity": quantity, "unit": unit, "planned": span, "measured": found, "ratio": ratio})
    return rows


def planned(context: StageContext) -> dict[str, dict[str, int]]:
    """`{trained parameters: {from, to}, memory: {from, to}}`; empty where the plan cannot be made here, without a network."""
    from soka_cli.stages.dimensions import dimensions
    from soka_cli.stages.matching import settled
    from soka_cli.stages.plan import adapted_modules, memory_figures, totals

    try:
        context, _ = settled(context)
        adapter = context.recipe.adapter
        base = dimensions(context.recipe.model, "all-linear" if adapter.method == "peft" else adapter.target_modules, offline=True)
        modules = adapted_modules(context, base)
        memory = memory_figures(context, base, modules)
        parameters: dict[str, int] = totals(context, base, modules)["parameters"]
    except SokaError:
        return {}
    return {"trained parameters": parameters, "memory": {side: sizes["total"] for side, sizes in memory.items()}}
