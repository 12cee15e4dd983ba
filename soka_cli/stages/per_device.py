"""What one of several GPUs holds: every process the whole (DDP), or its share of what is sharded (FSDP2).

FSDP2 is `fully_shard` on each block, as training wraps them: parameters, gradients and optimizer state are cut into N equal shares;
theta0, which is a buffer, and what a micro-batch leaves behind are not.
"""

from dataclasses import replace

from soka_cli.recipe.schema import Recipe
from soka_cli.stages.dimensions import Dimensions
from soka_cli.stages.memory import BYTES, FP32, Memory, gradients
from soka_cli.stages.sizes import AdapterSizes

BLOCKS_GATHERED = 2  # the block that computes, and the next one on its way


def replicated(memory: Memory, trained: int, world: int) -> Memory:
    """DDP: all of it, and the buckets that gradients are sent in, 4 P; one process sends nothing."""
    return replace(memory, workspace=memory.workspace + (gradients(trained) if world > 1 else 0))


def sharded(memory: Memory, recipe: Recipe, base: Dimensions, sizes: AdapterSizes, world: int) -> Memory:
    """FSDP2: weights, trained values, gradients and moments by N; whole, two blocks and the tables at the model's ends.

    A gathered parameter is in the type that its matrix products have. Where every weight is trained, the gradient of a block is whole
    too until it is shared out.
    """
    full = recipe.adapter.method == "full"
    kept = FP32 * sizes.kept
    width = BYTES[recipe.train.precision] if full else min(BYTES[recipe.train.precision], BYTES[recipe.model.dtype])
    tables = max(base.parameters - base.layers * base.block, 0)
    gathered = width * (BLOCKS_GATHERED * base.block + tables) + (FP32 * base.block if full else 0)
    return replace(
        memory,
        weights=_share(memory.weights, world),
        adapter=kept + _share(memory.adapter - kept, world),
        gradients=_share(memory.gradients, world),
        optimizer=_share(memory.optimizer, world),
        workspace=memory.workspace + (gathered if world > 1 else 0),
    )


def _share(total: int, world: int) -> int:
    return -(-total // world)
