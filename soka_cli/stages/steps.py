"""How many optimizer steps a run takes, and how many rows they read: what a plan says and training does."""

import math

from soka_cli.recipe.schema import Recipe


def steps_in_all(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of a run over `rows`; the last batch of a pass may be smaller."""
    return recipe.train.steps or math.ceil((recipe.train.epochs or 1.0) * math.ceil(rows / recipe.train.batch_size))


def rows_read(recipe: Recipe, rows: int) -> int:
    """Rows that the steps of a run read: whole passes, and whole batches of the last one."""
    passes, rest = divmod(steps_in_all(recipe, rows), math.ceil(rows / recipe.train.batch_size))
    return passes * rows + min(rest * recipe.train.batch_size, rows)
