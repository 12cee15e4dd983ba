"""How long a training run is: optimizer steps, and the rows and tokens that they read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soka_cli.data.load import SourceRows
from soka_cli.data.order import ReadingOrder
from soka_cli.recipe.places import locate
from soka_cli.recipe.schema import Recipe
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.context import StageContext
from soka_cli.stages.rows import EncodedRows, encode, losses, mixture, read_rows, reading_order
from soka_cli.stages.steps import items_read, steps_in_all

SAMPLE = 2000  # rows that are encoded to learn how long they are; a larger set is judged by this many, evenly spread


@dataclass(frozen=True)
class Length:
    """What is known before training.

    Attributes:
        rows: rows to learn from in one pass; None where the data is not at hand and the recipe names no number.
        steps: optimizer steps.
        tokens: tokens read over the whole run, where data and tokenizer are at hand; `sampled` says they are scaled up.
        tokens_at_most: every row (every pack, under packing) at max_length.
        sampled: whether the rows were judged by a sample of them.
        packs: packs in one pass under packing, where that can be told.
        ledger: what became of the rows that were looked at; None where data and tokenizer are not at hand.
        row_notes: sentences about rows that are cut or left out.
    """

    rows: int | None
    steps: int | None
    tokens: int | None
    tokens_at_most: int | None
    sampled: bool = False
    packs: int | None = None
    ledger: dict[str, Any] | None = None
    row_notes: tuple[str, ...] = ()


def length(context: StageContext) -> Length:
    """Rows, steps and tokens as far as they can be told without a network.

    Raises:
        SokaError: exit 4 where the data is at hand and damaged, exit 7 where it holds nothing to learn.
    """
    recipe = context.recipe
    parts = rows_at_hand(context)
    counts = [len(part.rows) for part in parts] if parts is not None else rows_named(recipe)
    if counts is None:
        return _without_rows(recipe)
    encoded = None if parts is None else encoded_sample(context, parts)
    if encoded is None:
        return _without_rows(recipe) if recipe.data.packing else _by_rows(recipe, counts)
    return _by_tokens(recipe, counts, encoded)


def _without_rows(recipe: Recipe) -> Length:
    steps = recipe.train.steps
    return Length(None, steps, None, steps and steps * recipe.train.batch_size * recipe.data.max_length)


def _by_rows(recipe: Recipe, counts: Sequence[int]) -> Length:
    """Where the number of rows is all that is known."""
    order = ReadingOrder(mixture(recipe.data, counts, recipe.seed))
    tokens_at_most = items_read(recipe, order) * recipe.data.max_length
    return Length(sum(counts), steps_in_all(recipe, order), None, tokens_at_most)


def _by_tokens(recipe: Recipe, counts: Sequence[int], encoded: EncodedRows) -> Length:
    """From rows that were encoded, all of them or a sample; then rows, packs and tokens are scaled up."""
    order = reading_order(recipe, encoded.rows, encoded.counts)
    first = order.pass_items(0)
    tokens = sum(len(encoded.rows[row]["input_ids"]) for rows in first for row in rows)
    sampled = encoded.looked_at != list(counts)
    rows = sum(max(round(count * used / of), 1) for count, used, of in zip(counts, encoded.counts, encoded.looked_at, strict=True))
    items = round(len(first) * rows / sum(map(len, first)))
    if sampled:
        steps = recipe.train.steps or math.ceil((recipe.train.epochs or 1.0) * items / recipe.train.batch_size)
    else:
        steps = steps_in_all(recipe, order)
    read = steps * recipe.train.batch_size
    return Length(
        rows=rows,
        steps=steps,
        tokens=round(read * tokens / len(first)),
        tokens_at_most=read * recipe.data.max_length,
        sampled=sampled,
        packs=items if order.packed else None,
        ledger=encoded.to_mapping(),
        row_notes=tuple(losses(encoded.ledger, recipe.data.max_length)),
    )


def rows_named(recipe: Recipe) -> list[int] | None:
    """The rows of each source that the recipe itself tells, those held out for validation taken away."""
    sources = recipe.data.sources
    if any(source.rows is None or source.filter for source in sources):
        return None
    fraction = (recipe.data.validation.fraction if recipe.data.validation else None) or 0.0
    return [max((source.rows or 0) - round(fraction * (source.rows or 0)), 1) for source in sources]


def rows_at_hand(context: StageContext) -> list[SourceRows] | None:
    """The training rows where they, those to validate on, and the evaluations that they must not overlap with are local files."""
    data = context.recipe.data
    validation = data.validation.path if data.validation else None
    paths = [*(source.path for source in data.sources), *([validation] if validation else [])]
    if data.decontaminate == "drop":
        paths += [entry.path for entry in context.recipe.eval]
    for place in map(locate, paths):
        if not isinstance(place, Path) or not place.is_file():
            return None
    return read_rows(replace(context, offline=True))[0]


def encoded_sample(context: StageContext, parts: Sequence[SourceRows]) -> EncodedRows | None:
    """What encoding makes of the rows, or of a sample of them; None where the tokenizer is not at hand, or is an encoder's, whose
    texts end nowhere."""
    section = context.recipe.model
    place = locate(section.name)
    if not isinstance(place, Path):
        return None
    from soka_cli.models.base import load_tokenizer, read_tokenizer

    if read_tokenizer(place, trust=context.recipe.model.trust_remote_code).eos_token_id is None:
        return None
    stride = math.ceil(sum(len(part.rows) for part in parts) / SAMPLE)
    sample = [part.only(range(0, len(part.rows), stride), part.filtered, part.overlapping) for part in parts]
    return encode(replace(context, reporter=SilentReporter()), load_tokenizer(section, offline=True), sample, "train")
