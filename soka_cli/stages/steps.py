"""How many optimizer steps a run takes, and how many rows they read: what a plan says and training does."""

import math

from soka_cli.data.order import ReadingOrder
from soka_cli.recipe.schema import Recipe


def steps_in_all(recipe: Recipe, order: ReadingOrder) -> int:
    """Optimizer steps of a run; every batch is full, the last one filled up from the next pass."""
    return recipe.train.steps or math.ceil(order.items(recipe.train.epochs or 1.0) / recipe.train.batch_size)


def items_read(recipe: Recipe, order: ReadingOrder) -> int:
    """Rows (packs, under packing) that the steps of a run read."""
    return steps_in_all(recipe, order) * recipe.train.batch_size
