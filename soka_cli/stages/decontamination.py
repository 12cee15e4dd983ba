"""Training rows without those that overlap with what the recipe evaluates."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from soka_cli.data.conversation import UnlearnableError, messages_of
from soka_cli.data.load import Row, SourceRows, load_rows, require_columns, source_digest
from soka_cli.data.overlap import NGRAM, Item, OverlapIndex, RowTexts
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import EvalSection, Recipe, SourceSection
from soka_cli.stages.context import StageContext
from soka_cli.tasks.base import Example, task_named

LEAVES_OUT = "data.decontaminate: drop"


def decontaminated(
    context: StageContext, training: Sequence[SourceRows], validation: Sequence[SourceRows] = ()
) -> tuple[list[SourceRows], list[SourceRows]]:
    """The rows of each source that overlap with no item of the recipe's evaluations, whatever their limit; how many go is said.

    Args:
        training: the sources that are learnt from.
        validation: the held-out rows that have a file of their own.

    Raises:
        SokaError: exit 4 for evaluation data that is missing or damaged, or where every row of a source overlaps.
    """
    recipe, reporter = context.recipe, context.reporter
    items = [item_of(example) for entry in recipe.eval for example in items_of(entry, offline=context.offline)]
    index, kept = OverlapIndex(items), []
    for section, parts in (("train", training), ("validation", validation)):
        total = sum(len(part.rows) for part in parts)
        with reporter.task(f"decontaminate data.{section}", total=total, unit="rows") as progress:
            some = [without(part, overlapping(index, part, progress.advance), section) for part in parts]
        kept.append(some)
        if parts:
            dropped, name = sum(len(part.overlapping) for part in some), "training" if section == "train" else section
            found = f"{dropped:,} of {total:,} {name} rows overlap with {len(items):,} evaluation items"
            reporter.say(f"{LEAVES_OUT}: {found} and are left out.")
    return kept[0], kept[1]


def overlapping(index: OverlapIndex, part: SourceRows, told: Callable[[int], None]) -> set[int]:
    """The places of a source's rows that overlap with some item."""
    rows = texts_of(0, part.source, zip(part.numbers, part.rows, strict=True))
    return {number for _, number in index.overlap(rows, told).rows}


def without(part: SourceRows, found: set[int], section: str) -> SourceRows:
    """The rows of a source of data.`section` but for those at these places."""
    if len(found) == len(part.rows):
        raise SokaError(
            f"All {len(found)} rows of data.{section} overlap with what the recipe evaluates.",
            where=f"{LEAVES_OUT}, {part.source.path}",
            hint=f"take other rows: data.{section}.path; or keep them with data.decontaminate=none",
            exit_code=ExitCode.DATA,
        )
    kept = (index for index, number in enumerate(part.numbers) if number not in found)
    return part.only(kept, part.filtered, sorted(found))


def left_out(training: Sequence[SourceRows], validation: Sequence[SourceRows] = ()) -> dict[str, Any]:
    """What was left out, as plain JSON values: for each source the places of the rows; `dropped` counts those of training."""
    sources, held_out = ([_left_out_of(part) for part in parts] for parts in (training, validation))
    counted = {"words": NGRAM, "dropped": sum(source["dropped"] for source in sources), "sources": sources}
    return counted | ({"validation": held_out[0]} if held_out else {})


def _left_out_of(part: SourceRows) -> dict[str, Any]:
    return {"path": part.source.path, "dropped": len(part.overlapping), "rows": list(part.overlapping)}


def items_of(entry: EvalSection, *, offline: bool) -> list[Example]:
    """Every item of an entry's data, whatever its limit."""
    task = task_named(entry.task)
    rows = load_rows(entry.path, revision=entry.revision, config=entry.config, split=entry.split, task=entry.task, offline=offline)
    return [task.example(row, index) for index, row in enumerate(rows)]


def item_of(example: Example) -> Item:
    """The problem in its own words, and the answer."""
    return Item(example.prompt if example.problem is None else example.problem, example.target)


def texts_of(place: int, source: SourceSection, rows: Iterable[tuple[int, Row]]) -> Iterator[RowTexts]:
    """The texts of each row of the source at `place` that has some.

    Raises:
        SokaError: exit 4 for a missing column.
    """
    for number, row in rows:
        if texts := row_texts(source, row, number):
            yield RowTexts((place, number), texts)


def row_texts(source: SourceSection, row: Row, number: int) -> tuple[str, ...]:
    """What a row asks and answers, before any template."""
    where = f"{source.path}, row {number}"
    if source.task is not None:
        task = task_named(source.task)
        require_columns(row, task.fields, where)
        item = item_of(task.example(dict(row), number))
        return item.problem, item.solution
    columns = [source.messages] if source.messages is not None else [str(source.prompt), str(source.target)]
    require_columns(row, columns, where)
    values = [row[column] for column in columns]
    if source.messages is not None:
        try:
            values = [message.get("content") for message in messages_of(values[0])]
        except UnlearnableError:
            return ()
    return tuple(value for value in values if isinstance(value, str))


def evaluation_inputs(recipe: Recipe) -> list[dict[str, Any]]:
    """Which items training rows are compared with; local files by their digest."""
    return [_entry_inputs(entry) for entry in recipe.eval]


def _entry_inputs(entry: EvalSection) -> dict[str, Any]:
    digest = source_digest(entry.path)
    place = {"path": entry.path, "revision": entry.revision, "config": entry.config} if digest is None else {"sha256": digest}
    return {"task": entry.task, "split": entry.split} | place
