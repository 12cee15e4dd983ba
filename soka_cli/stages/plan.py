"""Stage plan: what a recipe will cost - parameters, steps, tokens, memory - before any weight is read."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron.shape import KronShape
from soka_cli.recipe.places import shown
from soka_cli.recipe.schema import AdapterSection
from soka_cli.run.write import write_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import Dimensions, dimensions, unmatched
from soka_cli.stages.length import Length, length
from soka_cli.stages.memory import Memory, estimate
from soka_cli.stages.outcome import Cell, Outcome, Table
from soka_cli.stages.sizes import PlannedModule, adapter_sizes, adapter_totals, budget_left, planned_modules

SCHEMA_VERSION = 1
WORDS = {
    "weights": "frozen weights",
    "adapter": "adapter, with its start",
    "gradients": "gradients",
    "optimizer": "AdamW's two moments",
    "activations": "activations of a micro-batch",
    "logits": "logits and their gradient",
    "total": "in all",
}


def plan(context: StageContext) -> Outcome:
    """Say what the recipe costs, and write plan.json: the fields of `figures`, below.

    `from` is with every module at its smallest rank, `to` at its largest; they are equal unless a rule reads the spectrum. Under
    rule budget the totals are what the budget comes to, and the memory is that of an even spread.

        schema_version
        model       name, source, parameters
        method
        kinds       per module type and size: kind, modules, out_features, in_features, shape {m, n, p, q} or null,
                    term_parameters, rank, parameters, lora_parameters, each of these three {from, to}
        totals      modules, components, parameters, lora_parameters, the last three {from, to}; for method soka lora_within, LoRA
                    of no more parameters: those of a_rank over all modules, the rank {from, to}
        training    rows, steps, tokens (null where not known), tokens_at_most, sampled
        memory      {from, to}: bytes of weights, adapter, gradients, optimizer, activations, logits, total

    Needs neither weights nor a network for a local model, or one in the packaged table.

    Raises:
        SokaError: exit 2 (targets, shapes), 3 (base model), 4 (data that is at hand and damaged), 7 (nothing to learn in it).
    """
    recipe = context.recipe
    base = dimensions(recipe.model, recipe.adapter.target_modules, offline=context.offline)
    modules = planned_modules(recipe.adapter, base.targets)
    steps = length(context)
    figures: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": recipe.model.name, "source": base.source, "parameters": base.parameters},
        "method": recipe.adapter.method,
        "kinds": [kind_figures(members) for members in kinds(modules)],
        "totals": totals(context, base, modules),
        "training": asdict(steps),
        "memory": memory_figures(context, base, modules),
    }
    write(context.layout.plan, figures)
    return Outcome(
        stage="plan",
        status="done",
        run=context.layout.root,
        figures=figures,
        tables=(*modules_table(context, figures), memory_table(figures["memory"])),
        notes=tuple(notes(context, base, modules, figures, steps)),
        next_commands=(run_command(context),),
    )


def run_command(context: StageContext) -> str:
    """What runs this very plan: recipe, run directory and overrides."""
    loaded, root = context.loaded, context.layout.root
    words = ["soka", "run", "--recipe", loaded.name if loaded.path is None else shown(loaded.path, Path.cwd())]
    if root != Path("runs") / loaded.name:
        words += ["--run", str(root)]
    overrides = [place.removeprefix("override ") for place in loaded.origins.values() if place.startswith("override ")]
    return shlex.join([*words, *dict.fromkeys(overrides)])


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write plan.json, and the run directory where it is missing."""
    try:
        write_json(path, figures)
    except OSError as error:
        raise SokaError(
            "plan.json cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            hint="choose a writable run directory with --run DIR",
            exit_code=ExitCode.RUN,
        ) from error


def kinds(modules: Sequence[PlannedModule]) -> list[list[PlannedModule]]:
    """The modules by type, size and shape, in the model's order."""
    groups: dict[Any, list[PlannedModule]] = {}
    for one in modules:
        key = (one.module.kind, one.module.out_features, one.module.in_features, one.shape, one.least, one.most)
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def span(least: int, most: int) -> dict[str, int]:
    return {"from": least, "to": most}


def kind_figures(members: Sequence[PlannedModule]) -> dict[str, Any]:
    first, count = members[0], len(members)
    shape = None if first.shape is None else asdict(first.shape)
    return {
        "kind": first.module.kind,
        "modules": count,
        "out_features": first.module.out_features,
        "in_features": first.module.in_features,
        "shape": shape,
        "term_parameters": first.term_parameters,
        "rank": span(first.least, first.most),
        "parameters": span(count * first.least * first.term_parameters, count * first.most * first.term_parameters),
        "lora_parameters": span(count * first.lora_parameters(first.least), count * first.lora_parameters(first.most)),
    }


def totals(context: StageContext, base: Dimensions, modules: Sequence[PlannedModule]) -> dict[str, Any]:
    """Trained parameters in all; for method full that is the whole model, and there are no components."""
    if context.recipe.adapter.method == "full":
        nothing = span(0, 0)
        return {"modules": 0, "components": nothing, "parameters": span(base.parameters, base.parameters), "lora_parameters": nothing}
    counts = adapter_totals(context.recipe.adapter, modules)
    found: dict[str, Any] = {
        "modules": len(modules),
        "components": span(*counts.components),
        "parameters": span(*counts.parameters),
        "lora_parameters": span(*counts.lora_parameters),
    }
    if context.recipe.adapter.method == "soka":
        a_rank = sum(one.lora_parameters(1) for one in modules)
        found["lora_within"] = {"a_rank": a_rank, "rank": span(*(parameters // a_rank for parameters in counts.parameters))}
    return found


def memory_figures(context: StageContext, base: Dimensions, modules: Sequence[PlannedModule]) -> dict[str, Any]:
    def figures(most: bool) -> dict[str, int]:
        memory: Memory = estimate(context.recipe, base, adapter_sizes(context.recipe.adapter, modules, most=most))
        return {**asdict(memory), "total": memory.total}

    return {"from": figures(False), "to": figures(True)}


def modules_table(context: StageContext, figures: dict[str, Any]) -> tuple[Table, ...]:
    """Parameters by module type and in all; nothing for method full."""
    if not figures["kinds"]:
        return ()
    soka = context.recipe.adapter.method == "soka"
    rows = [
        (
            f"{one['modules']} {one['kind']}",
            size_text(one),
            one["term_parameters"],
            span_text(one["rank"]),
            span_text(one["parameters"]),
            span_text(one["lora_parameters"]),
        )
        for one in figures["kinds"]
    ]
    every = figures["totals"]
    rows.append((f"{every['modules']} in all", "", None, "", span_text(every["parameters"]), span_text(every["lora_parameters"])))
    columns = ("modules", "shape", "a term", "terms") if soka else ("modules", "weight", "a rank", "rank")
    return (Table("Trained parameters", (*columns, "parameters", "LoRA, same rank"), tuple(rows)),)


def size_text(kind: dict[str, Any]) -> str:
    """The factors' sizes, or the weight's where the method has no factors of its own."""
    shape = kind["shape"]
    return f"{kind['out_features']}x{kind['in_features']}" if shape is None else str(KronShape(**shape))


def span_text(values: dict[str, int]) -> Cell:
    """One number, or `from-to`, large ones in millions."""
    least, most = values["from"], values["to"]
    if least == most:
        return least
    return f"{least / 1e6:.2f}M-{most / 1e6:.2f}M" if most >= 100_000 else f"{least:,}-{most:,}"


def memory_table(memory: dict[str, Any]) -> Table:
    """Bytes in the unit that suits the total; two columns where the ranks are not known yet."""
    unit, digits, divisor = ("GB", 3, 1e9) if memory["to"]["total"] >= 2e9 else ("MB", 1, 1e6)
    ranged = memory["from"] != memory["to"]
    columns = (f"{unit}, fewest terms", f"{unit}, most terms") if ranged else (unit,)
    sides = ("from", "to") if ranged else ("from",)
    rows = tuple((words, *(round(memory[side][name] / divisor, digits) for side in sides)) for name, words in WORDS.items())
    return Table("Memory of one training step, estimated", ("held in memory", *columns), rows)


def notes(context: StageContext, base: Dimensions, modules: Sequence[PlannedModule], figures: dict[str, Any], steps: Length) -> list[str]:
    trained = figures["totals"]["parameters"]
    share = " to ".join(f"{100 * value / base.parameters:.2g}%" for value in dict.fromkeys(trained.values()))
    found = [f"{context.recipe.model.name}: {base.parameters:,} parameters, of which {share} trained (sizes: {base.source})"]
    if figures["kinds"]:
        missed = unmatched(context.recipe.adapter.target_modules, [one.name for one in base.targets])
        found += [f"{name} in target_modules matches nothing" for name in missed]
    adapter = context.recipe.adapter
    if adapter.method == "soka" and adapter.rank.rule == "budget":
        found.append(budget_note(adapter, modules, trained))
    elif trained["from"] != trained["to"]:
        found.append(f"rule {adapter.rank.rule} reads the spectra: decompose tells the number of terms")
    if "lora_within" in figures["totals"]:
        found.append(lora_note(**figures["totals"]["lora_within"]))
    return [*found, length_note(context, steps)]


def budget_note(adapter: AdapterSection, modules: Sequence[PlannedModule], trained: dict[str, int]) -> str:
    """How much of the budget is spent, and where."""
    spent = (
        f"rule budget spends {' to '.join(f'{value:,}' for value in dict.fromkeys(trained.values()))} of {adapter.rank.parameters or 0:,}"
    )
    if budget_left(adapter, modules) is None:
        return f"{spent} parameters: every module gets all the terms that max {adapter.rank.max} and its shape leave room for"
    return f"{spent} parameters; the spectra tell in which modules, and the memory is that of an even spread"


def lora_note(a_rank: int, rank: dict[str, int]) -> str:
    """LoRA on the same modules with no more parameters."""
    fitting = [f"rank {value} ({value * a_rank:,})" for value in dict.fromkeys(rank.values()) if value]
    if not fitting:
        return f"LoRA of no more parameters on these modules: none, rank 1 takes {a_rank:,}"
    return f"LoRA of no more parameters on these modules: {' to '.join(fitting)}"


def length_note(context: StageContext, steps: Length) -> str:
    """Rows, steps and tokens in one sentence."""
    if steps.steps is None:
        return "steps: not known before the data is there; name data.train.rows or a local file to see them"
    rows = f"{steps.rows:,} rows a pass, " if steps.rows is not None else ""
    if steps.tokens is not None:
        tokens = f"{'about ' if steps.sampled else ''}{steps.tokens:,} tokens"
    else:
        tokens = f"at most {steps.tokens_at_most:,} tokens"
    return f"{rows}{steps.steps:,} steps of {context.recipe.train.batch_size} rows, {tokens}"
