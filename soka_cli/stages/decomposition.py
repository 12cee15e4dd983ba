"""The work of stage decompose: one weight after the other, each kept as soon as it is done."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from soka_cli.adapter.factors import weight_digest, write_factors
from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import Decomposition, KronFactors, KronShape, RankRule, decompose_weight, module_seed
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import Target, refuse_tied, skeleton, stored_names, targets
from soka_cli.run.digest import json_digest
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import ProgressTask
from soka_cli.run.write import atomic_file, atomic_folder, write_json
from soka_cli.stages.allocation import allocated, spread_evenly
from soka_cli.stages.context import StageContext


@dataclass(frozen=True)
class Part:
    """One finished module: its terms, its spectrum and the error bounds of that, its row of layers.json, and the digest of the
    weight they come from."""

    factors: KronFactors
    spectrum: Tensor
    error_bound: Tensor
    record: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Work:
    """What is to be done for one module: where its weight is stored, how it is split, and the key of its part file."""

    target: Target
    stored: str
    shape: KronShape
    key: str


def decompose_modules(context: StageContext, checkpoint: Checkpoint, inputs: dict[str, Any], device: str) -> None:
    """Decompose every target and write decompose/ as one folder. Modules that an earlier run finished are taken from there."""
    works = planned(context, checkpoint, inputs)
    layout = context.layout
    done = {work.target.name: part for work in works if (part := read_part(layout, work)) is not None}
    rule = context_rule(context)
    if rule.reads_all and rule.spectrum != "full":
        context.reporter.say("rule gavish-donoho without rank.noise reads the median singular value: all of each weight's are computed")
    if done:
        context.reporter.say(f"decompose: {len(done)} of {len(works)} modules are there from a run that was stopped")
    with context.reporter.task("decompose", total=len(works), unit="modules") as task:
        task.advance(len(done))
        for work in works:
            if work.target.name not in done:
                done[work.target.name] = decomposed(context, checkpoint, work, device, task)
    write_results(context, allocated(rule, [done[work.target.name] for work in works]))


def context_rule(context: StageContext) -> RankRule:
    """The recipe's rule of ranks."""
    config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
    return config.rank_rule


def planned(context: StageContext, checkpoint: Checkpoint, inputs: dict[str, Any]) -> list[Work]:
    """Targets, stored tensors and shapes, all judged before the first weight is read."""
    model = skeleton(checkpoint.folder)
    found = targets(model, context.recipe.adapter.target_modules)
    refuse_tied(found.values())
    stored = stored_names(model, checkpoint, list(found.values()))
    config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
    works = []
    for name, target in found.items():
        try:
            shape = config.shape_of(name, target.out_features, target.in_features)
        except ValueError as error:
            raise SokaError(
                "the shape asked for does not fit a target's weight",
                where=f"{name}, {target.out_features} x {target.in_features}",
                why=str(error),
                hint="adapter.shape=balanced, or one of the sizes above; adapter.shape_pattern gives one kind of module another shape",
                exit_code=ExitCode.USAGE,
            ) from None
        works.append(Work(target, stored[name], shape, json_digest({"inputs": inputs, "module": name})))
    if config.rank_rule.rule == "budget":
        spread_evenly(config.rank_rule, {work.target.name: work.shape for work in works})
    return works


def decomposed(context: StageContext, checkpoint: Checkpoint, work: Work, device: str, task: ProgressTask) -> Part:
    """Read one weight, decompose it, keep the part on disk."""
    name, recipe = work.target.name, context.recipe
    weight = checkpoint.tensor(work.stored)
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise SokaError(
            f"tensor {work.stored} of the base model is {str(weight.dtype).removeprefix('torch.')}, a packed type",
            where=str(checkpoint.folder / checkpoint.entry(work.stored).shard),
            hint="take the model's unquantised weights (float32, bfloat16 or float16)",
            exit_code=ExitCode.ENVIRONMENT,
        )
    digest = weight_digest(weight.to(getattr(torch, recipe.model.dtype)))  # as the trained base will hold it
    matrix = (weight.T if work.target.transposed else weight).to(device)  # (out, in)
    config: Any = peft_config(recipe.adapter, seed=recipe.seed)
    try:
        found = decompose_weight(matrix, work.shape, config.rank_rule, seed=module_seed(recipe.seed, name))
    except ValueError as error:
        raise SokaError(
            f"the weight of {name} cannot be decomposed",
            where=f"tensor {work.stored} in {checkpoint.folder / checkpoint.entry(work.stored).shard}",
            why=str(error),
            hint="the base model's file is damaged or the model diverged; take it again from its source",
            exit_code=ExitCode.ENVIRONMENT,
        ) from None
    factors = KronFactors(*(tensor.cpu() for tensor in (found.factors.left, found.factors.right, found.factors.sigma)))
    part = Part(factors, found.spectrum.cpu().double(), found.error_bound.cpu().double(), record_of(name, found), digest)
    write_part(context.layout, work, part)
    task.advance(1, module=name, rank=found.choice.rank)
    return part


def record_of(name: str, found: Decomposition) -> dict[str, Any]:
    """One module's row of layers.json, fields as the contract has them."""
    shape, choice = found.shape, found.choice
    return {
        "name": name,
        "out_features": shape.out_features,
        "in_features": shape.in_features,
        "m": shape.m,
        "n": shape.n,
        "p": shape.p,
        "q": shape.q,
        "rank": choice.rank,
        "rank_energy": choice.rank_energy,
        "rank_elbow": choice.rank_elbow,
        "rank_bound_by": choice.bound_by,
        "ranks": dict(choice.ranks),
        "energy_kept": choice.energy_kept,
        "energy_computed": choice.energy_computed,
        "total_energy": found.total_energy,
        "relative_error": found.relative_error,
        "sigma_error_bound": found.sigma_error_bound,
        "parameters": shape.parameters(choice.rank),
        "seconds": found.seconds,
    }


def write_results(context: StageContext, parts: list[Part]) -> None:
    """decompose/ whole: factors, spectra, layers.json. A module without terms has a spectrum, and its name in layers.json."""
    section = context.recipe.model
    parts_by_name = {part.record["name"]: part for part in parts}
    with_terms = {name: part for name, part in parts_by_name.items() if part.factors.rank}
    with atomic_folder(context.layout.decompose) as folder:
        write_factors(
            folder / context.layout.factors.name,
            {name: part.factors for name, part in with_terms.items()},
            {name: part.digest for name, part in parts_by_name.items()},
            base=section.name if section.revision is None else f"{section.name}@{section.revision}",
        )
        save_file({name: part.spectrum for name, part in parts_by_name.items()}, folder / context.layout.spectra.name)
        layers = {
            "modules": [part.record for part in with_terms.values()],
            "totals": totals(parts),
            "without_terms": [name for name in parts_by_name if name not in with_terms],
        }
        write_json(folder / context.layout.layers.name, layers)


def totals(parts: list[Part]) -> dict[str, Any]:
    return {
        "modules": sum(part.record["rank"] > 0 for part in parts),
        "parameters": sum(part.record["parameters"] for part in parts),
        "components": sum(part.record["rank"] for part in parts),
        "seconds": sum(part.record["seconds"] for part in parts),
    }


def write_part(layout: RunLayout, work: Work, part: Part) -> None:
    tensors = {"U": part.factors.left, "V": part.factors.right, "sigma": part.factors.sigma, "spectrum": part.spectrum}
    tensors["error_bound"] = part.error_bound
    metadata = {"key": work.key, "record": json.dumps(part.record), "digest": part.digest}
    with atomic_file(layout.decompose_parts / f"{work.key[:32]}.safetensors") as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def read_part(layout: RunLayout, work: Work) -> Part | None:
    """A module that an earlier run finished on the same inputs; None where there is none that can be used."""
    path = layout.decompose_parts / f"{work.key[:32]}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != work.key:
                return None
            factors = KronFactors(*(file.get_tensor(name) for name in ("U", "V", "sigma")))
            spectrum, error_bound = file.get_tensor("spectrum"), file.get_tensor("error_bound")
            return Part(factors, spectrum, error_bound, json.loads(metadata["record"]), metadata["digest"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
