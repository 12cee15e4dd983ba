"""Training rows as the model sees them, for people: which part is read and which is learnt."""

from itertools import groupby
from typing import Any

from soka_cli.data.encode import IGNORED, EncodedRow, encode_rows
from soka_cli.data.ledger import Ledger
from soka_cli.data.load import SourceRows, load_source
from soka_cli.models.base import load_tokenizer
from soka_cli.recipe.schema import SourceSection
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Sample

LOOKED_AT = 20  # rows that are read for each one shown: some may teach nothing


def samples(context: StageContext, count: int) -> list[Sample]:
    """The first `count` rows of each training source from which something is learnt.

    Raises:
        SokaError: exit 3 without a tokenizer, 4 without data, 7 where the first rows teach nothing.
    """
    tokenizer = load_tokenizer(context.recipe.model, offline=context.offline)
    return [sample for source in context.recipe.data.sources for sample in _of_source(context, tokenizer, source, count)]


def _of_source(context: StageContext, tokenizer: Any, source: SourceSection, count: int) -> list[Sample]:
    most = min(source.rows or LOOKED_AT * count, LOOKED_AT * count)
    found = load_source(source.model_copy(update={"rows": most}), offline=context.offline)
    encoded, _ = _encoded(context, tokenizer, found)
    chosen = encoded[:count]
    alone = [_encoded(context, tokenizer, found.only([found.numbers.index(row["row"])])) for row in chosen]
    return [_sample(tokenizer, source.path, row, cut=ledger.truncated > 0) for row, (_, ledger) in zip(chosen, alone, strict=True)]


def _encoded(context: StageContext, tokenizer: Any, part: SourceRows) -> tuple[list[EncodedRow], Ledger]:
    data = context.recipe.data
    return encode_rows(tokenizer, part.rows, source=part.source, template=data.template, max_length=data.max_length, numbers=part.numbers)


def _sample(tokenizer: Any, path: str, row: EncodedRow, *, cut: bool) -> Sample:
    ids, labels = row["input_ids"], row["labels"]
    learnt = sum(label != IGNORED for label in labels)
    end = ", cut: its end is not learnt" if cut else ""
    return Sample(
        title=f"{path}, row {row['row']}: {len(ids)} tokens, {learnt} learnt{end}",
        parts=tuple(parts(tokenizer, row)),
        figures={"path": path, "row": row["row"], "truncated": cut, "input_ids": ids, "labels": labels},
    )


def parts(tokenizer: Any, row: EncodedRow) -> list[tuple[str, bool]]:
    """The row's text in runs, and whether each is learnt; together they are the decoded row, special tokens and all."""
    found, before, place = [], "", 0
    for learnt, run in groupby(row["labels"], key=lambda label: label != IGNORED):
        place += len(list(run))
        text = str(tokenizer.decode(row["input_ids"][:place], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        found.append((text[len(before) :], learnt))
        before = text
    return found
