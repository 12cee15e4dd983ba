"""How long a training run is: optimizer steps, and the rows and tokens that they read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soka_cli.recipe.places import locate
from soka_cli.recipe.schema import Recipe
from soka_cli.stages.context import StageContext
from soka_cli.stages.steps import rows_read, steps_in_all

if TYPE_CHECKING:
    from soka_cli.data.encode import Ledger

SAMPLE = 2000  # rows that are encoded to learn how long they are; a larger set is judged by this many, evenly spread


@dataclass(frozen=True)
class Length:
    """What is known before training.

    Attributes:
        rows: rows to learn from in one pass; None where the data is not at hand and the recipe names no number.
        steps: optimizer steps.
        tokens: tokens read over the whole run, where data and tokenizer are at hand; `sampled` says they are scaled up.
        tokens_at_most: every row at max_length.
    """

    rows: int | None
    steps: int | None
    tokens: int | None
    tokens_at_most: int | None
    sampled: bool = False


def held_out(recipe: Recipe, rows: int) -> int:
    """Rows that validation takes away from the training rows."""
    fraction = recipe.data.validation.fraction if recipe.data.validation else None
    return 0 if fraction is None else max(1, round(fraction * rows))


def length(context: StageContext) -> Length:
    """Rows, steps and tokens as far as they can be told without a network.

    Raises:
        SokaError: exit 4 where the data is at hand and damaged, exit 7 where it holds nothing to learn.
    """
    recipe = context.recipe
    found = rows_at_hand(recipe)
    rows = len(found) if found is not None else recipe.data.train.rows
    if found is None and recipe.data.train.filter:
        rows = None
    if rows is None:
        steps = recipe.train.steps
        return Length(None, steps, None, steps and steps * recipe.train.batch_size * recipe.data.max_length)
    learnt = max(rows - held_out(recipe, rows), 1)
    sample = tokens_of(context, found) if found is not None else None
    if sample is not None:
        learnt = max(round(learnt * sample.used / sample.read), 1)
    read = rows_read(recipe, learnt)
    return Length(
        rows=learnt,
        steps=steps_in_all(recipe, learnt),
        tokens=None if sample is None else round(read * sample.tokens / sample.used),
        tokens_at_most=read * recipe.data.max_length,
        sampled=sample is not None and sample.read < rows,
    )


def rows_at_hand(recipe: Recipe) -> list[dict[str, Any]] | None:
    """The training rows where they are a local file."""
    from soka_cli.data.load import load_rows

    source = recipe.data.train
    place = locate(source.path)
    if not isinstance(place, Path) or not place.is_file():
        return None
    return load_rows(source.path, split=source.split, rows=source.rows, filter=source.filter, task=source.task, offline=True)


def tokens_of(context: StageContext, rows: list[dict[str, Any]]) -> "Ledger | None":
    """What encoding makes of the rows, or of a sample of them; None where the tokenizer is not at hand, or is an encoder's, whose
    texts end nowhere."""
    recipe = context.recipe
    place = locate(recipe.model.name)
    if not isinstance(place, Path):
        return None
    from soka_cli.data.encode import encode_rows
    from soka_cli.models.base import load_tokenizer, read_tokenizer

    if read_tokenizer(place).eos_token_id is None:
        return None
    sample = rows[:: math.ceil(len(rows) / SAMPLE)]
    data = recipe.data
    tokenizer = load_tokenizer(recipe.model, offline=True)
    _, ledger = encode_rows(tokenizer, sample, source=data.train, template=data.template, max_length=data.max_length)
    return ledger
