"""Stage plan: what a recipe will cost - parameters, steps, tokens, memory - before any weight is read."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron.shape import KronShape
from soka_cli.recipe.places import shown
from soka_cli.recipe.schema import AdapterSection, ModelSection
from soka_cli.run.resources import available_memory
from soka_cli.run.write import write_json
from soka_cli.stages.baselines import by_formula, laid_out, lora_parameters
from soka_cli.stages.cautions import UNMATCHED
from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import Dimensions, dimensions, unmatched
from soka_cli.stages.ledger_table import ledger_table
from soka_cli.stages.length import Length, length
from soka_cli.stages.like_rank import lokr_span
from soka_cli.stages.matching import settled
from soka_cli.stages.memory import BYTES, Memory, estimate, pristine_weights, start_memory
from soka_cli.stages.outcome import Cell, Outcome, Sample, Table
from soka_cli.stages.plan_costs import cost_figures, cost_tables, effort_note, truncation_note
from soka_cli.stages.sizes import PlannedModule, adapter_sizes, adapter_totals, budget_left, counted_modules, planned_modules

SCHEMA_VERSION = 1
WORDS = {
    "weights": "weights of the base",
    "adapter": "adapter, with its start",
    "gradients": "gradients",
    "optimizer": "AdamW's two moments",
    "activations": "activations of a micro-batch",
    "logits": "logits and their gradient",
    "workspace": "workspace of the processes",
    "total": "in all",
}


def plan(context: StageContext, *, show_data: int = 0, processes: int = 1, tokens_per_s: float | None = None) -> Outcome:
    """Say what the recipe costs, and write plan.json: the fields of `figures`, below.

    `from` is with every module at its smallest, `to` at its largest; they are equal unless a rule reads the spectrum or the
    shape is searched. Under rule budget the totals are what the budget comes to, and the memory is that of an even spread.

        schema_version
        model       name, source, parameters
        method
        match       method, matched, wanted, rank, parameters: the rank that match_parameters chose; null without it
        kinds       per module type and size: kind, modules, out_features, in_features, shape {m, n, p, q} or null, searched
                    (how many shapes the search compares), term_parameters or null, rank, parameters, lora_parameters (PiSSA's
                    too), lokr_parameters, each of these four {from, to}
        totals      modules, components, parameters, lora_parameters, lokr_parameters, the last four {from, to}; for method soka
                    lora_within, LoRA of no more parameters: those of a_rank over all modules, the rank {from, to}
        training    rows, steps, tokens (null where not known), tokens_at_most, sampled; packs a pass under packing; ledger, what
                    became of the rows that were looked at, null where data or tokenizer are not at hand
        memory      {from, to}: bytes of weights, adapter, gradients, optimizer, activations, logits, workspace, total
        per_gpu     processes; ddp and fsdp2, the same bytes on each of so many GPUs, at the most terms
        effort      operations_a_token, operations, tokens_per_s, speed_from (given or measured), seconds; null where not known
        disk        bytes of decompose, checkpoint, checkpoints, adapter, merged, total
        evaluation  per entry: name, items, max_new_tokens, tokens_at_most, models, operations_at_most, cache_bytes
        start_memory  the same for making a start from data; null for another start
        pristine_weights  bytes of main memory that adapter.fold_start takes; 0 without it
        rows_shown  with `show_data`, so many rows of each source: path, row, truncated, input_ids, labels

    Needs neither weights nor a network for a local model, or one in the packaged table.

    Raises:
        SokaError: exit 2 (targets, shapes), 3 (base model), 4 (data that is at hand and damaged), 7 (nothing to learn in it).
    """
    context, match = settled(context)
    recipe = context.recipe
    base = dimensions(
        recipe.model, "all-linear" if recipe.adapter.method == "peft" else recipe.adapter.target_modules, offline=context.offline
    )
    modules = adapted_modules(context, base)
    steps = length(context)
    figures: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": recipe.model.name, "source": base.source, "parameters": base.parameters},
        "method": recipe.adapter.method,
        "match": None if match is None else asdict(match),
        "kinds": [kind_figures(members) for members in kinds(modules)],
        "totals": totals(context, base, modules),
        "training": {name: value for name, value in asdict(steps).items() if name != "row_notes"},
        "memory": memory_figures(context, base, modules),
        "start_memory": start_figures(context, base),
        "pristine_weights": pristine_weights(recipe, base),
    }
    largest = adapter_sizes(recipe.adapter, modules, most=True)
    figures |= cost_figures(context, base, largest, steps, world=processes, tokens_per_s=tokens_per_s)
    shown = shown_rows(context, show_data)
    write(context.layout.plan, figures)
    return Outcome(
        stage="plan",
        status="done",
        run=context.layout.root,
        figures={**figures, "rows_shown": [sample.figures for sample in shown]} if show_data else figures,
        tables=(
            *modules_table(context, figures),
            memory_table(figures["memory"]),
            *per_gpu_table(figures["per_gpu"]),
            *start_table(context, figures["start_memory"]),
            *cost_tables(figures),
            *rows_table(steps),
        ),
        samples=shown,
        notes=(*notes(context, base, modules, figures, steps), *([match.sentence] if match else [])),
        next_commands=(run_command(context),),
    )


def shown_rows(context: StageContext, count: int) -> tuple[Sample, ...]:
    """Rows as the model sees them; they need the tokenizer, which takes seconds to load."""
    if not count:
        return ()
    from soka_cli.stages.samples import samples

    return tuple(samples(context, count))


def rows_table(steps: Length) -> tuple[Table, ...]:
    """What becomes of the rows, where that can be told."""
    if steps.ledger is None:
        return ()
    sample = ", judged by a sample" if steps.sampled else ""
    return (ledger_table(f"Training rows{sample}", {"train": steps.ledger}),)


def adapted_modules(context: StageContext, base: Dimensions) -> list[PlannedModule]:
    """What the adapter has on each module; a method that no formula counts is laid out on the base's modules, without weights."""
    section, model = context.recipe.adapter, context.recipe.model
    if section.method in ("soka", "full") or by_formula(section):
        return planned_modules(section, base.targets)
    from soka_cli.models.snapshot import snapshot

    folder = snapshot(model.name, revision=model.revision, offline=context.offline, weights=False)
    return counted_modules(laid_out(section, folder, trust=model.trust_remote_code), section.config.get("r") or section.rank.value or 1)


def run_command(context: StageContext) -> str:
    """What runs this very plan: recipe, run directory and overrides."""
    loaded, root = context.loaded, context.layout.root
    words = ["soka", "run", "--recipe", loaded.name if loaded.path is None else shown(loaded.path, Path.cwd())]
    if root != Path("runs") / loaded.name:
        words += ["--run", str(root)]
    return shlex.join([*words, *loaded.overrides])


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
        key = (one.module.kind, one.module.out_features, one.module.in_features, *((terms.shape, terms.rank) for terms in one.choices))
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
        "searched": first.searched if first.searched > 1 else 0,
        "term_parameters": first.term_parameters,
        "rank": span(first.least, first.most),
        "parameters": span(count * first.choices[0].parameters, count * first.choices[-1].parameters),
        "lora_parameters": span(count * lora_parameters(first.module, first.least), count * lora_parameters(first.module, first.most)),
        "lokr_parameters": lokr_span(members),
    }


def totals(context: StageContext, base: Dimensions, modules: Sequence[PlannedModule]) -> dict[str, Any]:
    """Trained parameters in all; for method full that is the whole model, and there are no components."""
    if context.recipe.adapter.method == "full":
        nothing = span(0, 0)
        return {
            "modules": 0,
            "components": nothing,
            "parameters": span(base.parameters, base.parameters),
            "lora_parameters": nothing,
            "lokr_parameters": nothing,
        }
    counts = adapter_totals(context.recipe.adapter, modules)
    found: dict[str, Any] = {
        "modules": len(modules),
        "components": span(*counts.components),
        "parameters": span(*counts.parameters),
        "lora_parameters": span(*counts.lora_parameters),
        "lokr_parameters": lokr_span(modules, shared_out=True),
    }
    if context.recipe.adapter.method == "soka":
        a_rank = sum(lora_parameters(one.module, 1) for one in modules)
        found["lora_within"] = {"a_rank": a_rank, "rank": span(*(parameters // a_rank for parameters in counts.parameters))}
    return found


def memory_figures(context: StageContext, base: Dimensions, modules: Sequence[PlannedModule]) -> dict[str, Any]:
    def figures(most: bool) -> dict[str, int]:
        memory: Memory = estimate(context.recipe, base, adapter_sizes(context.recipe.adapter, modules, most=most))
        return {**asdict(memory), "total": memory.total}

    return {"from": figures(False), "to": figures(True)}


def start_figures(context: StageContext, base: Dimensions) -> dict[str, int] | None:
    memory = start_memory(context.recipe, base) if context.recipe.adapter.method == "soka" else None
    return None if memory is None else {**asdict(memory), "total": memory.total}


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
            span_text(one["lokr_parameters"]),
        )
        for one in figures["kinds"]
    ]
    every = figures["totals"]
    rows.append(
        (
            f"{every['modules']} in all",
            "",
            None,
            span_text(every["components"]),
            span_text(every["parameters"]),
            span_text(every["lora_parameters"]),
            span_text(every["lokr_parameters"]),
        )
    )
    columns = ("modules", "shape", "a term", "terms") if soka else ("modules", "weight", "a rank", "rank")
    return (Table("Trained parameters", (*columns, "parameters", "LoRA, PiSSA, same rank", "LoKr, same rank"), tuple(rows)),)


def size_text(kind: dict[str, Any]) -> str:
    """The factors' sizes, or the weight's where the method has no factors of its own or the search decides."""
    if kind["shape"] is not None:
        return str(KronShape(**kind["shape"]))
    weight = f"{kind['out_features']}x{kind['in_features']}"
    return f"{weight}, best of {kind['searched']}" if kind["searched"] else weight


def span_text(values: dict[str, int]) -> Cell:
    """One number, or `from-to`, large ones in millions."""
    least, most = values["from"], values["to"]
    if least == most:
        return least
    if most < 100_000:
        return f"{least:,}-{most:,}"
    return f"{least / 1e6:.2f}M-{most / 1e6:.2f}M" if least else f"0-{most / 1e6:.2f}M"


def memory_table(memory: dict[str, Any]) -> Table:
    """Two columns where the ranks are not known yet."""
    ranged = memory["from"] != memory["to"]
    sides = {"fewest terms": memory["from"], "most terms": memory["to"]} if ranged else {"": memory["to"]}
    return bytes_table("Memory of one training step, estimated", sides)


def per_gpu_table(per_gpu: dict[str, Any]) -> tuple[Table, ...]:
    """For several processes, what each GPU holds either way."""
    if per_gpu["processes"] == 1:
        return ()
    sides = {"DDP": per_gpu["ddp"], "FSDP2": per_gpu["fsdp2"]}
    return (bytes_table(f"Memory of each of {per_gpu['processes']} GPUs, estimated, at the most terms", sides),)


def start_table(context: StageContext, memory: dict[str, int] | None) -> tuple[Table, ...]:
    """For a start from data, what decompose holds; nothing for another start."""
    return () if memory is None else (bytes_table(f"Memory of init {context.recipe.adapter.init}, estimated", {"": memory}),)


def bytes_table(title: str, sides: dict[str, dict[str, int]]) -> Table:
    """Bytes in the unit that suits the largest total, a column for each side; parts of which there is nothing are left out."""
    unit, digits, divisor = ("GB", 3, 1e9) if max(one["total"] for one in sides.values()) >= 2e9 else ("MB", 1, 1e6)
    columns = tuple(f"{unit}, {side}" if side else unit for side in sides)
    named = {name: words for name, words in WORDS.items() if any(one[name] for one in sides.values())}
    rows: list[tuple[Cell, ...]] = [
        (words, *(round(one[name] / divisor, digits) for one in sides.values())) for name, words in named.items()
    ]
    return Table(title, ("held in memory", *columns), tuple(rows))


def notes(context: StageContext, base: Dimensions, modules: Sequence[PlannedModule], figures: dict[str, Any], steps: Length) -> list[str]:
    trained = figures["totals"]["parameters"]
    share = " to ".join(dict.fromkeys(f"{100 * value / base.parameters:.2g}%" for value in trained.values()))
    found = [f"{context.recipe.model.name}: {base.parameters:,} parameters, of which {share} trained (sizes: {base.source})"]
    if figures["kinds"] and context.recipe.adapter.method != "peft":
        missed = unmatched(context.recipe.adapter.target_modules, [one.name for one in base.targets])
        found += [f"{name} {UNMATCHED}" for name in missed]
    if any(one["searched"] for one in figures["kinds"]):
        found.append("shape search reads the matrices: decompose tells the shapes; none costs more than the balanced one may")
    adapter = context.recipe.adapter
    if adapter.method == "soka" and adapter.rank.rule == "budget":
        found.append(budget_note(adapter, modules, trained))
    elif trained["from"] != trained["to"] and adapter.rank.rule != "fixed":
        found.append(f"rule {adapter.rank.rule} reads the spectra: decompose tells the number of terms")
    if "lora_within" in figures["totals"]:
        found.append(lora_note(**figures["totals"]["lora_within"]))
    if (kind := context.recipe.model.quantization) != "none" or base.packed is not None:
        share = f"the {base.linear:,} parameters of linear layers are held as {kind if kind != 'none' else base.packed}, the rest in fp32"
        found.append(f"{share}; adapter and merge are those of the float model")
    if context.recipe.model.max_memory is not None:
        found.append(bounds_note(context.recipe.model, base.parameters))
    if (start := figures["start_memory"]) is not None:
        found.append(start_note(context, start["total"]))
    if kept := figures["pristine_weights"]:
        found.append(f"fold_start: the targets' weights are kept as they were, {kept / 1e9:.2f} GB of main memory, beside the table")
    return [
        *found,
        length_note(context, steps),
        effort_note(figures),
        *truncation_note(steps),
        *(f"training rows: {sentence}" for sentence in steps.row_notes),
    ]


def bounds_note(model: ModelSection, parameters: int) -> str:
    """Where the weights lie under max_memory, at the most."""
    assert model.max_memory is not None
    left, parts = parameters * BYTES[model.dtype], []
    for bound, place in ((model.max_memory.gpu, "on a GPU"), (model.max_memory.cpu, "in main memory")):
        if bound is not None:
            parts.append(f"at most {min(bound, left) / 1e9:.2f} GB {place}")
            left -= min(bound, left)
    rest = "on the disk" if model.max_memory.cpu is not None else "in main memory as far as that is free"
    whole = f"max_memory: of {parameters * BYTES[model.dtype] / 1e9:.2f} GB of weights {', '.join(parts)}"
    return f"{whole}, {left / 1e9:.2f} GB {rest}; these are fetched in every pass, forward and backward"


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


def start_note(context: StageContext, needed: int) -> str:
    """A start from data loads the model; whether there is room for it here."""
    note = f"init {context.recipe.adapter.init} loads the model in decompose, with {needed / 1e9:.2f} GB at its peak"
    available = available_memory()
    if available is not None and available < needed:
        note += f"; {available / 1e9:.2f} GB of main memory are free here, so without a larger GPU decompose will refuse (exit 6)"
    return note


def length_note(context: StageContext, steps: Length) -> str:
    """Rows, steps and tokens in one sentence."""
    if steps.steps is None:
        return "steps: not known before the data is there; name data.train.rows or a local file to see them"
    packed = f" in {'about ' if steps.sampled else ''}{steps.packs:,} packs" if steps.packs is not None else ""
    rows = f"{steps.rows:,} rows a pass{packed}, " if steps.rows is not None else ""
    if steps.tokens is not None:
        tokens = f"{'about ' if steps.sampled else ''}{steps.tokens:,} tokens"
    else:
        tokens = f"at most {steps.tokens_at_most:,} tokens"
    item = "packs" if context.recipe.data.packing else "rows"
    return f"{rows}{steps.steps:,} steps of {context.recipe.train.batch_size} {item}, {tokens}"
