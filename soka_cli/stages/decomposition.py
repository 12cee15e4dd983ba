"""The work of stage decompose: plan, then for each module matrix -> terms -> part file, then all parts -> decompose/."""

from collections.abc import Iterator, Sequence
from typing import Any

from safetensors.torch import save_file

from soka_cli.adapter.factors import write_factors
from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import Decomposition, KronFactors, decompose_weight, module_seed
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.run.write import atomic_folder, write_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.matrices import Matrix, read_ahead, weight_matrices
from soka_cli.stages.parts import Part, PartFiles
from soka_cli.stages.work import Work, planned_work


def decompose_modules(context: StageContext, checkpoint: Checkpoint, inputs: dict[str, Any], device: str) -> None:
    """Decompose every target and write decompose/ as one folder. Modules that an earlier run finished are taken from there."""
    works = planned_work(context, checkpoint, inputs)
    files = PartFiles(context.layout.decompose_parts)
    kept = sum(is_kept(context, files, work) for work in works)
    if kept:
        context.reporter.say(f"decompose: {kept} of {len(works)} modules are there from a run that was stopped")
    missing = [work for work in largest_first(works) if not files.path(work.key).exists()]
    with context.reporter.task("decompose", total=len(works), unit="modules") as task:
        task.advance(kept)
        for work, part in decomposed(context, missing, device):
            files.write(work.key, part)
            task.advance(1, module=work.name, rank=part.record["rank"])
    found = [files.read(work.key) for work in works]
    parts = [part for part in found if part is not None]
    write_results(context, parts)


def largest_first(works: Sequence[Work]) -> list[Work]:
    """The costly ones first, equal ones in the model's order."""
    return sorted(works, key=lambda work: -work.cost)


def is_kept(context: StageContext, files: PartFiles, work: Work) -> bool:
    """Whether an earlier run finished this module; a damaged file is dropped and said."""
    try:
        return files.read(work.key) is not None
    except ValueError as error:
        context.reporter.warn(f"{work.name} is done again: its part of the earlier run is damaged ({error})")
        files.discard(work.key)
        return False


def decomposed(context: StageContext, works: Sequence[Work], device: str) -> Iterator[tuple[Work, Part]]:
    """Each module's terms, as soon as they are found."""
    for work, matrix in read_ahead(weight_matrices(works, context.recipe.model.dtype)):
        yield work, part_of(context, work, matrix, device)


def part_of(context: StageContext, work: Work, matrix: Matrix, device: str) -> Part:
    """One module's terms, spectrum and record."""
    recipe = context.recipe
    config: Any = peft_config(recipe.adapter, seed=recipe.seed)
    try:
        found = decompose_weight(matrix.take().to(device), work.shape, config.rank_rule, seed=module_seed(recipe.seed, work.name))
    except ValueError as error:
        raise SokaError(
            f"the weight of {work.name} cannot be decomposed",
            where=work.weight.where,
            why=str(error),
            hint="the base model's file is damaged or the model diverged; take it again from its source",
            exit_code=ExitCode.ENVIRONMENT,
        ) from None
    factors = KronFactors(*(tensor.cpu() for tensor in (found.factors.left, found.factors.right, found.factors.sigma)))
    return Part(factors, found.spectrum.cpu().double(), record_of(work, found), matrix.digest)


def record_of(work: Work, found: Decomposition) -> dict[str, Any]:
    """One module's row of layers.json, fields as the contract has them."""
    shape, choice = found.shape, found.choice
    return {
        "name": work.name,
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
        "energy_kept": choice.energy_kept,
        "total_energy": found.total_energy,
        "relative_error": found.relative_error,
        "sigma_error_bound": found.sigma_error_bound,
        "parameters": shape.parameters(choice.rank),
        "seconds": found.seconds,
    }


def write_results(context: StageContext, parts: list[Part]) -> None:
    """decompose/ whole: factors, spectra, layers.json."""
    section = context.recipe.model
    parts_by_name = {part.record["name"]: part for part in parts}
    with atomic_folder(context.layout.decompose) as folder:
        write_factors(
            folder / context.layout.factors.name,
            {name: part.factors for name, part in parts_by_name.items()},
            {name: part.digest for name, part in parts_by_name.items()},
            base=section.name if section.revision is None else f"{section.name}@{section.revision}",
        )
        save_file({name: part.spectrum for name, part in parts_by_name.items()}, folder / context.layout.spectra.name)
        write_json(folder / context.layout.layers.name, {"modules": [part.record for part in parts], "totals": totals(parts)})


def totals(parts: list[Part]) -> dict[str, Any]:
    return {
        "modules": len(parts),
        "parameters": sum(part.record["parameters"] for part in parts),
        "components": sum(part.record["rank"] for part in parts),
        "seconds": sum(part.record["seconds"] for part in parts),
    }
