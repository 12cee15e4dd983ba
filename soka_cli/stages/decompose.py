"""Stage decompose: the leading Kronecker terms of every target weight, straight from the checkpoint's files."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soka_cli.recipe.resolved import to_mapping, to_yaml
from soka_cli.recipe.schema import DATA_INITS
from soka_cli.run.log import LOGGER
from soka_cli.run.stage import open_stage
from soka_cli.run.write import damaged, read_json, remove
from soka_cli.stages.cautions import unresolved_text
from soka_cli.stages.context import StageContext
from soka_cli.stages.launch import PATIENCE, Worker
from soka_cli.stages.outcome import Cell, Outcome, Table
from soka_cli.stages.rows import data_inputs

if TYPE_CHECKING:
    from soka_cli.models.checkpoint import Checkpoint

Record = dict[str, Any]

LESSON = timedelta(days=7)  # for the first process to find what a start from data decomposes; on a CPU that can take hours
COLUMNS = ("modules", "count", "weight", "terms", "energy kept", "decided by", "parameters", "LoRA, same rank")
TITLES = {
    "weight": "Terms taken from the base weights",
    "random": "Random terms with the base weights' singular values",
    "gradient": "Terms taken from the loss gradient",
    "early-update": "Terms taken from the update of the early steps",
}
DECOMPOSED = {"weight": "weight", "random": "weight", "gradient": "loss gradient", "early-update": "early update"}
FIELDS = ("kind", "modules", "weight", "rank", "energy_kept", "bound_by", "parameters", "lora_parameters")


def decompose(context: StageContext) -> Outcome:
    """Write decompose/ (factors, spectra, layers.json) for method soka; other methods have nothing to decompose.

    A killed run goes on with the modules that it has not finished. Weights are read one ahead. Among several processes the
    first one owns the run directory; the others leave parts for it and return `partial`.

    Raises:
        SokaError: exit 2 (targets, shapes), 3 (base model, weights that are not finite), 5 (run directory), 6 (disk, memory).
    """
    method = context.recipe.adapter.method
    if method != "soka":
        note = f"method {method} starts without a decomposition; there is nothing to do"
        return Outcome("decompose", "done", context.layout.root, {"method": method}, notes=(note,), next_commands=(train_command(context),))
    from soka_cli.models.base import pick_device
    from soka_cli.models.checkpoint import Checkpoint
    from soka_cli.models.snapshot import snapshot
    from soka_cli.stages.decomposition import help_decompose
    from soka_cli.stages.work import planned

    worker = Worker.here()
    device = worker.device(pick_device(context.device))
    section = context.recipe.model
    checkpoint = Checkpoint(snapshot(section.name, revision=section.revision, offline=context.offline))
    inputs = decompose_inputs(context, checkpoint.digest)
    if worker.rank == 0:
        return led(context, checkpoint, inputs, device, worker)
    patience = LESSON if context.recipe.adapter.init in DATA_INITS else PATIENCE
    if worker.may_begin("decompose", patience):
        help_decompose(context, planned(context, checkpoint, inputs), device, worker)
    return Outcome("decompose", "partial", context.layout.root)


def led(context: StageContext, checkpoint: "Checkpoint", inputs: dict[str, Any], device: str, worker: Worker) -> Outcome:
    """The stage in the process that owns the run directory."""
    from soka_cli.stages.decomposition import decompose_modules
    from soka_cli.stages.work import planned

    layout = context.layout
    with (
        worker.leads("decompose") as go,
        open_stage(
            layout,
            "decompose",
            inputs,
            recipe_yaml=to_yaml(context.recipe),
            source_text=context.loaded.source_text,
            command=context.command,
            force=context.force,
            folders=[layout.decompose],
            reporter=context.reporter,
        ) as stage,
    ):
        if stage.done:
            remove(layout.decompose_parts)
            return outcome(context, "already done")
        if context.force:
            remove(layout.decompose_parts)
        plan = planned(context, checkpoint, inputs)
        for warning in plan.warnings:
            context.reporter.warn(warning)
            logging.getLogger(LOGGER).warning(warning)
        decompose_modules(context, plan, device, worker, go)
        stage.finish([layout.decompose], {"device": device, "processes": worker.count, "threads": threads()})
        remove(layout.decompose_parts)
    return outcome(context, "done")


def threads() -> int:
    """Threads of one process's products, on which their last digits depend."""
    import torch

    return torch.get_num_threads()


def decompose_inputs(context: StageContext, base: str) -> dict[str, Any]:
    """What the factors depend on. The base counts by its content (`Checkpoint.digest`), not by where it lies, so that a run
    directory can be moved to a machine that keeps the model elsewhere. The data counts where the start is taken from it."""
    recipe = to_mapping(context.recipe)
    model = {name: value for name, value in recipe["model"].items() if name not in ("name", "revision", "trust_remote_code", "max_memory")}
    adapter = {
        name: value for name, value in recipe["adapter"].items() if name not in ("sigma", "product", "fold_start")
    }  # how training holds and computes it
    inputs = {"model": model, "base": base, "adapter": adapter, "seed": recipe["seed"]}
    if context.recipe.adapter.init in DATA_INITS:
        inputs["data"] = data_inputs(context.recipe)
    return inputs


def train_command(context: StageContext) -> str:
    return f"soka train --run {context.layout.root}"


def read_layers(path: Path) -> Record:
    """layers.json. Exit 5 where it lacks its parts."""
    layers = read_json(path)
    if not isinstance(layers, dict) or not isinstance(layers.get("modules"), list) or not isinstance(layers.get("totals"), dict):
        raise damaged(path, "it has no modules and totals")
    return layers


def outcome(context: StageContext, status: Any) -> Outcome:
    """Figures and tables, read back from what was written."""
    layers = read_layers(context.layout.layers)
    modules, totals = layers["modules"], layers["totals"]
    kinds = {name: [one for one in modules if kind_of(one) == name] for name in dict.fromkeys(map(kind_of, modules))}
    rows = [kind_row(name, members) for name, members in kinds.items()]
    rows.append(kind_row("all", modules))
    unresolved = [one["name"] for one in modules if one["rank_bound_by"] == "unresolved"]
    like = low_rank_alike(modules)
    figures = {
        "modules": totals["modules"],
        "components": totals["components"],
        "parameters": totals["parameters"],
        "lora_parameters": like["same_rank"]["parameters"],
        "lora": like,
        "pissa": like,
        "seconds": totals["seconds"],
        "energy_kept": energy_kept(modules),
        "rank": {"min": min(one["rank"] for one in modules), "max": max(one["rank"] for one in modules)},
        "bound_by": count(one["rank_bound_by"] for one in modules),
        "unresolved": unresolved,
        "stored_as": count(one["stored_as"] for one in modules),
        "warnings": layers["warnings"],
        "without_terms": layers.get("without_terms", []),
        "kinds": [dict(zip(FIELDS, row, strict=True)) for row in rows[:-1]],
    }
    notes = [f"{totals['parameters']:,} trainable parameters in {totals['components']} terms of {totals['modules']} modules"]
    if status == "already done":
        notes.insert(0, "decompose: nothing to do, the factors of these inputs are there")
    if without := figures["without_terms"]:
        notes.append(f"{len(without)} of {len(modules) + len(without)} target modules got no term, and no adapter")
    if unresolved:
        notes.append(unresolved_text(len(unresolved), context.recipe.adapter.rank.rule))
    notes += [
        *source_notes(figures["stored_as"], context.recipe.model.quantization),
        *(f"warning: {warning}" for warning in figures["warnings"]),
    ]
    if context.layout.search.exists():
        figures["search"] = search_figures(context.layout.search)
        notes.append(search_note(figures["search"]))
    tables = (Table(TITLES[context.recipe.adapter.init], COLUMNS, tuple(rows)), budget_table(figures))
    return Outcome("decompose", status, context.layout.root, figures, tables, tuple(notes), (train_command(context),))


def low_rank_alike(modules: Sequence[Record]) -> Record:
    """What LoRA trains on the same modules, and PiSSA as much: at each module's own rank, and at the one rank for all of them that
    comes closest from below to the parameters here (1, where even that is more)."""
    rank_one = sum(one["out_features"] + one["in_features"] for one in modules)
    rank = max(1, sum(one["parameters"] for one in modules) // rank_one)
    return {
        "same_rank": {"parameters": lora_parameters(modules)},
        "same_parameters": {"rank": rank, "parameters": rank * rank_one},
    }


def budget_table(figures: Record) -> Table:
    """The total beside those of LoRA and PiSSA."""
    like, total = figures["lora"], figures["parameters"]
    ranks = span(figures["rank"]["min"], figures["rank"]["max"])
    rows: tuple[tuple[str, str, int], ...] = (
        ("SoKA", ranks, total),
        ("LoRA or PiSSA, each module's own rank", ranks, like["same_rank"]["parameters"]),
        ("LoRA or PiSSA, one rank, like budget", str(like["same_parameters"]["rank"]), like["same_parameters"]["parameters"]),
    )
    columns = ("method", "terms or rank", "parameters", "of SoKA's")
    return Table("The same modules at like budgets", columns, tuple((*row, f"{row[2] / total:.0%}") for row in rows))


def source_notes(stored_as: dict[str, int], quantization: str) -> list[str]:
    """Which weights the terms come from, where the base is packed or will be when it is loaded."""
    packed = [
        f"the base is quantised: the terms of {number} modules come from its dequantised {kind} weights, as it holds no float ones"
        for kind, number in stored_as.items()
        if "float" not in kind
    ]
    if packed or quantization == "none":
        return packed
    kinds = " and ".join(stored_as)
    return [
        f"the base is packed as {quantization} when it is loaded: the terms come from the {kinds} weights of its files, as a merge does"
    ]


def search_figures(path: Path) -> Record:
    """How many modules left the balanced shape, and the energy that all keep at one budget, in their shapes and in balanced ones."""
    modules = read_json(path)["modules"]
    total = sum(one["total_energy"] for one in modules) or 1.0
    energy = {"searched": 0.0, "balanced": 0.0}
    moved = 0
    for one in modules:
        plain = one["candidates"][0]  # the first in balanced's order
        taken = next(candidate for candidate in one["candidates"] if one["chosen"].items() <= candidate.items())
        energy["searched"] += taken["energy_kept"] * one["total_energy"] / total
        energy["balanced"] += plain["energy_kept"] * one["total_energy"] / total
        moved += taken is not plain
    return {"modules": len(modules), "moved": moved, "energy_kept": energy}


def search_note(search: Record) -> str:
    energy = search["energy_kept"]
    return (
        f"shape search: {search['moved']} of {search['modules']} modules leave the balanced shape; for the same parameters they all hold "
        f"{energy['searched']:.3g} of the energy, balanced {energy['balanced']:.3g}; what that does to the loss only training tells"
    )


def kind_of(module: Record) -> str:
    """q_proj of model.layers.3.self_attn.q_proj."""
    return str(module["name"]).rpartition(".")[2]


def kind_row(kind: str, members: Sequence[Record]) -> tuple[Cell, ...]:
    ranks = [one["rank"] for one in members]
    sizes = {f"{one['out_features']}x{one['in_features']} = {one['m']}x{one['n']} (x) {one['p']}x{one['q']}" for one in members}
    decided = count(one["rank_bound_by"] for one in members)
    return (
        kind,
        len(members),
        sizes.pop() if len(sizes) == 1 else f"{len(sizes)} sizes",
        span(min(ranks), max(ranks)),
        energy_kept(members),
        ", ".join(f"{name} {number}" for name, number in decided.items()),
        sum(one["parameters"] for one in members),
        lora_parameters(members),
    )


def span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}-{most}"


def energy_kept(members: Sequence[Record]) -> float:
    """Share of the weights' energy that the terms hold, all weights together."""
    total = sum(one["total_energy"] for one in members)
    return sum(one["energy_kept"] * one["total_energy"] for one in members) / total if total else 1.0


def lora_parameters(members: Sequence[Record]) -> int:
    """What LoRA trains at the same rank in each module: r (out + in)."""
    return sum(one["rank"] * (one["out_features"] + one["in_features"]) for one in members)


def count(names: Any) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
