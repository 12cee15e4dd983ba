"""The work of stage decompose: for each module matrix -> terms -> part file, then all parts -> decompose/."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from safetensors.torch import save_file

from soka_cli.adapter.factors import write_factors
from soka_cli.adapter.methods import peft_config
from soka_cli.adapter.start import Start, make_start
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors, RankRule, ShapeSearch
from soka_cli.recipe.schema import DATA_INITS
from soka_cli.run.reporter import ProgressTask
from soka_cli.run.write import atomic_folder, write_json
from soka_cli.stages.allocation import allocated
from soka_cli.stages.context import StageContext
from soka_cli.stages.launch import Worker, share_out
from soka_cli.stages.matrices import Matrix, read_ahead
from soka_cli.stages.parts import Part, PartFiles
from soka_cli.stages.starts import prepare_matrices, start_matrices
from soka_cli.stages.work import Plan, Work

TAKEN_FOR_DEAD = 300.0  # seconds without a new part from the other processes, after which the first one does their work
POLL = 0.2  # seconds between looks at what the others have done


def decompose_modules(context: StageContext, plan: Plan, device: str, worker: Worker, go: Callable[[], None]) -> None:
    """Decompose every target and write decompose/ as one folder. Modules that an earlier run finished are taken from there.

    Args:
        device: where to compute, a name from pick_device.
        worker: this process, the first of those that share the work.
        go: lets the others begin.
    """
    files = PartFiles(context.layout.decompose_parts)
    kept = [work for work in plan.works if is_kept(context, files, work)]
    if kept:
        context.reporter.say(f"decompose: {len(kept)} of {len(plan.works)} modules are there from a run that was stopped")
    rule = rank_rule(context)
    if rule.reads_all and rule.spectrum != "full":
        context.reporter.say("rule gavish-donoho without rank.noise reads the median singular value: all of each weight's are computed")
    if len(kept) < len(plan.works):
        prepare_matrices(context, plan, device)
    go()
    with context.reporter.task("decompose", total=len(plan.works), unit="modules") as task:
        progress = Progress(task, plan.works, kept)
        for work, part in finished(context, files, own_share(plan, worker), device):
            progress.count([work], rank=part.record["rank"])
            if worker.count > 1:
                progress.count(files.among(plan.works))
        await_others(context, plan, files, device, progress)
    write_results(context, plan, allocated(rule, [read_back(context, files, work, device) for work in plan.works]))


def rank_rule(context: StageContext) -> RankRule:
    config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
    rule: RankRule = config.rank_rule
    return rule


def help_decompose(context: StageContext, plan: Plan, device: str, worker: Worker) -> None:
    """Another process's share: part files, which the first one puts together."""
    for _ in finished(context, PartFiles(context.layout.decompose_parts), own_share(plan, worker), device):
        pass


def own_share(plan: Plan, worker: Worker) -> list[Work]:
    """This process's modules, the costly ones first; the same division in every process."""
    return [plan.works[index] for index in share_out([work.cost for work in plan.works], worker.count)[worker.rank]]


def is_kept(context: StageContext, files: PartFiles, work: Work) -> bool:
    """Whether an earlier run finished this module; a damaged file is dropped and said."""
    try:
        return files.read(work.key) is not None
    except ValueError as error:
        context.reporter.warn(f"{work.name} is done again: its part is damaged ({error})")
        files.discard(work.key)
        return False


def finished(context: StageContext, files: PartFiles, works: Sequence[Work], device: str) -> Iterator[tuple[Work, Part]]:
    """Do those of the modules that have no part yet, each written as soon as it is found."""
    missing = [work for work in works if not files.path(work.key).exists()]
    for work, matrix in read_ahead(start_matrices(context, missing)):
        part = part_of(context, work, matrix, device)
        files.write(work.key, part)
        yield work, part


def await_others(context: StageContext, plan: Plan, files: PartFiles, device: str, progress: "Progress") -> None:
    """Wait for the other processes' parts, as long as they come; then do what is missing here, the cheapest first."""
    moved = time.monotonic()
    while len(done := files.among(plan.works)) < len(plan.works):
        if progress.count(done):
            moved = time.monotonic()
        if time.monotonic() - moved < TAKEN_FOR_DEAD:
            time.sleep(POLL)
            continue
        missing = [work for work in plan.works if work not in done]
        for _ in finished(context, files, [min(missing, key=lambda work: work.cost)], device):
            context.reporter.warn(f"no process finished a module for {TAKEN_FOR_DEAD:.0f} s: the first one does the others' work")
    progress.count(done)


def read_back(context: StageContext, files: PartFiles, work: Work, device: str) -> Part:
    """A finished module's part, from its file; done again where that was damaged since."""
    if not is_kept(context, files, work):
        for _ in finished(context, files, [work], device):
            pass
    part = files.read(work.key)
    assert part is not None
    return part


class Progress:
    """What the user sees: modules, bytes read and time left, over all processes; time goes by the modules' cost."""

    def __init__(self, task: ProgressTask, works: Sequence[Work], kept: Sequence[Work]) -> None:
        self.task = task
        self.bytes = sum(work.weight.nbytes for work in works)
        self.read = sum(work.weight.nbytes for work in kept)
        self.counted = {work.key for work in kept}
        self.done, self.left = 0, sum(work.cost for work in works) - sum(work.cost for work in kept)
        self.started = time.monotonic()
        task.advance(len(kept))

    def count(self, works: Sequence[Work], **figures: float | str) -> bool:
        """Count modules as done, each once; whether one of them is new."""
        new = [work for work in works if work.key not in self.counted]
        for work in new:
            self.counted.add(work.key)
            self.read += work.weight.nbytes
            self.done, self.left = self.done + work.cost, self.left - work.cost
            self.task.estimate((time.monotonic() - self.started) / self.done * self.left)
            self.task.advance(1, read=gigabytes(self.read, self.bytes), **figures, module=work.name)
        return bool(new)


def gigabytes(read: int, total: int) -> str:
    """`1.2/13.5GB`, in megabytes where that is too coarse."""
    unit, divisor = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
    return f"{read / divisor:.1f}/{total / divisor:.1f}{unit}"


def part_of(context: StageContext, work: Work, matrix: Matrix, device: str) -> Part:
    """One module's terms, spectrum and record."""
    recipe = context.recipe
    config: Any = peft_config(recipe.adapter, seed=recipe.seed)
    learnt = None if matrix.learnt is None else matrix.learnt.to(device)
    try:
        start = make_start(matrix.take().to(device), config, work.name, matrix=learnt)
    except ValueError as error:
        raise undecomposable(context, work, str(error)) from None
    factors = KronFactors(*(tensor.cpu() for tensor in (start.factors.left, start.factors.right, start.factors.sigma)))
    search = None if start.search is None else search_record(work, start.search)
    spectrum, error_bound = (values.cpu().double() for values in (start.found.spectrum, start.found.error_bound))
    own_sigma = None if start.own_sigma is None else start.own_sigma.cpu().double()
    return Part(factors, spectrum, error_bound, record_of(work, start), matrix.digest, search, own_sigma)


def undecomposable(context: StageContext, work: Work, why: str) -> SokaError:
    """A matrix that is not finite: the weight's file is damaged, or what was learnt from the data overflowed."""
    init = context.recipe.adapter.init
    if init in DATA_INITS:
        return SokaError(
            f"the {init} of {work.name} cannot be decomposed",
            where=f"adapter.init: {init}",
            why=why,
            hint="look for rows that the model cannot digest, or take model.dtype=float32; adapter.init=weight reads no data",
            exit_code=ExitCode.TRAINING,
        )
    return SokaError(
        f"the weight of {work.name} cannot be decomposed",
        where=work.weight.where,
        why=why,
        hint="the base model's file is damaged or the model diverged; take it again from its source",
        exit_code=ExitCode.ENVIRONMENT,
    )


def search_record(work: Work, search: ShapeSearch) -> dict[str, Any]:
    """One module's row of search.json; energies and their error bounds are shares of total_energy (of a zero matrix, 0)."""

    def share(energy: float | None) -> float | None:
        return None if energy is None else energy / (search.total_energy or 1.0)

    return {
        "name": work.name,
        "parameters": search.parameters,
        "total_energy": search.total_energy,
        "chosen": asdict(search.chosen.shape),
        "decided_by": search.decided_by,
        "candidates": [
            {
                **asdict(one.shape),
                "terms": one.terms,
                "parameters": one.shape.parameters(one.terms),
                "sketch_energy_kept": share(one.sketch_energy),
                "energy_kept": share(one.energy),
                "energy_error_bound": share(one.error_bound),
            }
            for one in search.candidates
        ],
    }


def record_of(work: Work, start: Start) -> dict[str, Any]:
    """One module's row of layers.json: the contract's fields, of the matrix that was decomposed; the weight's own energy, and how
    the weight is stored."""
    found = start.found
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
        "ranks": dict(choice.ranks),
        "energy_kept": choice.energy_kept,
        "energy_computed": choice.energy_computed,
        "total_energy": found.total_energy,
        "relative_error": found.relative_error,
        "sigma_error_bound": found.sigma_error_bound,
        "parameters": shape.parameters(choice.rank),
        "seconds": found.seconds,
        "weight_energy": start.weight_energy,
        "stored_as": work.weight.stored_as,
    }


def write_results(context: StageContext, plan: Plan, parts: list[Part]) -> None:
    """decompose/ whole: factors, spectra, layers.json, and search.json where a shape was searched. A module without terms has a
    spectrum, and its name in layers.json."""
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
        records = [part.record for part in with_terms.values()]
        layers = {
            "modules": records,
            "totals": totals(records),
            "without_terms": [name for name in parts_by_name if name not in with_terms],
            "warnings": list(plan.warnings),
        }
        write_json(folder / context.layout.layers.name, layers)
        if searches := [part.search for part in parts if part.search is not None]:
            write_json(folder / context.layout.search.name, {"modules": searches})


def totals(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "modules": len(records),
        "parameters": sum(record["parameters"] for record in records),
        "components": sum(record["rank"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
    }
