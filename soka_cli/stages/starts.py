"""Which matrix of each module is decomposed: its weight, or for a start from data the loss gradient or an early update."""

import gc
from collections.abc import Iterator, Sequence

import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.device import free_memory
from soka_cli.recipe.schema import DATA_INITS
from soka_cli.run.digest import json_digest
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import DECOMPOSED
from soka_cli.stages.dimensions import dimensions
from soka_cli.stages.lesson import Lesson
from soka_cli.stages.matrices import Matrix, weight_matrices
from soka_cli.stages.matrix_store import MatrixStore
from soka_cli.stages.memory import start_memory
from soka_cli.stages.work import Plan, Work


def prepare_matrices(context: StageContext, plan: Plan, device: str) -> None:
    """Find and keep the matrices of a start from data; any other start has nothing to prepare.

    Those that an earlier run on the same inputs left are taken as they are.

    Raises:
        SokaError: exit 6 where memory or disk has no room, said before the model is loaded; and as `Lesson`.
    """
    if context.recipe.adapter.init not in DATA_INITS:
        return
    store = matrix_store(context, plan.works)
    key = json_digest([work.key for work in plan.works])
    if store.holds(key):
        context.reporter.say(f"init {context.recipe.adapter.init}: the matrices are there from a run that was stopped")
        return
    require_start_memory(context, device)
    store.open()
    lesson = Lesson(context, [work.weight.target for work in plan.works], device)
    if context.recipe.adapter.init == "gradient":
        lesson.gradient(store)
    else:
        lesson.early_update(store)
    del lesson
    gc.collect()  # the model's modules refer to each other
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    store.close(key)


def start_matrices(context: StageContext, works: Sequence[Work]) -> Iterator[tuple[Work, Matrix]]:
    """Each module's weight and, for a start from data, the matrix that is decomposed in its place.

    Raises:
        SokaError: as `weight_matrices`; exit 7, where a matrix is zero.
    """
    found = weight_matrices(works, context.recipe.model.dtype)
    if context.recipe.adapter.init not in DATA_INITS:
        yield from found
        return
    store = matrix_store(context, works)
    for work, matrix in found:
        matrix.learnt = store.read(work.name)
        if not bool(matrix.learnt.any()):
            raise nothing_learnt(context, work)
        yield work, matrix
        del matrix


def matrix_store(context: StageContext, works: Sequence[Work]) -> MatrixStore:
    return MatrixStore(context.layout.decompose_matrices, [work.weight.target for work in works])


def nothing_learnt(context: StageContext, work: Work) -> SokaError:
    section = context.recipe.adapter
    return SokaError(
        f"The {DECOMPOSED[section.init]} of {work.name} is zero, so there is nothing to start from.",
        where=f"adapter.init: {section.init}, {section.init_rows} rows",
        hint=f"read more rows (adapter.init_rows={4 * section.init_rows}), or leave the module out of adapter.target_modules",
        exit_code=ExitCode.TRAINING,
    )


def require_start_memory(context: StageContext, device: str) -> None:
    """Refuse early (exit 6) where the estimate of what the start holds is more than is free."""
    recipe = context.recipe
    needed = start_memory(recipe, dimensions(recipe.model, recipe.adapter.target_modules, offline=context.offline))
    free = free_memory(device)
    if needed is not None and free is not None and free < needed.total:
        raise SokaError(
            f"Init {recipe.adapter.init} needs about {needed.total / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free.",
            where=device,
            why="it loads the model" + ("; gradients and AdamW's moments of every target" if needed.optimizer else ""),
            hint="adapter.init=weight loads no model; or take a larger --device, fewer target_modules, train.micro_batch_size=1",
            exit_code=ExitCode.RESOURCES,
        )
