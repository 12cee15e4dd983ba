"""The rows that a run learns from: loaded, some held out, encoded; and what stands for them among a stage's inputs."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from soka_cli.data.encode import EncodedRow, encode_rows
from soka_cli.data.ledger import Ledger
from soka_cli.data.load import SourceRows, load_source, source_digest
from soka_cli.data.order import Mixture, ReadingOrder
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.resolved import to_mapping
from soka_cli.recipe.schema import DataSection, Recipe, SourceSection
from soka_cli.stages.context import StageContext
from soka_cli.stages.decontamination import decontaminated, evaluation_inputs

FILTERED = "the filter leaves it out"
OVERLAPPING = "an evaluation has it too"


def data_inputs(recipe: Recipe) -> dict[str, Any]:
    """The data section with local files by their digest, so that a moved run directory stays valid.

    Where rows that overlap with the evaluations are dropped, the evaluations' data count too.
    """
    data = dict(to_mapping(recipe)["data"])
    if data.pop("decontaminate") == "drop":
        data["decontaminated_of"] = evaluation_inputs(recipe)
    train = data["train"]
    data["train"] = [_by_digest(source) for source in train] if isinstance(train, list) else _by_digest(train)
    if "validation" in data:
        data["validation"] = _by_digest(data["validation"])
    return data


def _by_digest(source: dict[str, Any]) -> dict[str, Any]:
    digest = source_digest(source["path"]) if source.get("path") else None
    return {key: value for key, value in source.items() if key != "path"} | {"sha256": digest} if digest else source


def read_rows(context: StageContext) -> tuple[list[SourceRows], list[SourceRows]]:
    """Rows to learn from, source by source, and those held out for validation (none where the recipe asks for none).

    Raises:
        SokaError: exit 4 for data that is missing or damaged, or a validation or decontamination that leaves nothing.
    """
    data, held_out = context.recipe.data, validation_source(context.recipe.data)
    training, validation = (
        [load_source(source, offline=context.offline) for source in sources]
        for sources in (data.sources, [held_out] if held_out is not None else [])
    )
    if data.decontaminate == "drop":
        training, validation = decontaminated(context, training, validation)
    if data.validation is not None and data.validation.fraction is not None:
        return _split(training, data.validation.fraction, context.recipe.seed)
    return training, validation


def validation_source(data: DataSection) -> SourceSection | None:
    """The held-out rows that `data.validation.path` names, read as the first training source is; None where it names none."""
    validation, first = data.validation, data.sources[0]
    if validation is None or validation.path is None:
        return None
    changes = {"path": validation.path, "revision": None, "split": validation.split or first.split, "rows": validation.rows}
    return first.model_copy(update=changes)


@dataclass(frozen=True)
class EncodedRows:
    """Rows as the model reads them, and what became of them.

    Attributes:
        rows: of all sources, one source behind the other.
        counts: rows of each source.
        ledger: of all sources, their records counted through.
        sources: for each source its name, the number of its first record in that count, and its own ledger.
    """

    rows: list[EncodedRow]
    counts: tuple[int, ...]
    ledger: Ledger
    sources: tuple[tuple[str, int, Ledger], ...]

    @property
    def looked_at(self) -> list[int]:
        """Rows of each source that were encoded or found to teach nothing, behind the filter and without what evaluations have."""
        return [ledger.read - ledger.dropped[FILTERED] - ledger.dropped[OVERLAPPING] for _, _, ledger in self.sources]

    def to_mapping(self) -> dict[str, Any]:
        """The ledger as plain JSON values; with several sources each one's own as well."""
        several = [{"path": path, "first_row": first, **ledger.to_mapping()} for path, first, ledger in self.sources]
        return {**self.ledger.to_mapping(), **({"sources": several} if len(several) > 1 else {})}


def encode(context: StageContext, tokenizer: Any, parts: Sequence[SourceRows], name: str) -> EncodedRows:
    """Ids and labels, with a warning for what was cut or left out; `name` is what the user calls these rows.

    Raises:
        SokaError: exit 4 for a missing column, exit 7 where no row of a source has a supervised token.
    """
    data = context.recipe.data
    rows: list[EncodedRow] = []
    counts, sources, whole = [], [], Ledger()
    for part, first_row in zip(parts, accumulate((part.size for part in parts), initial=0), strict=False):
        encoded, ledger = encode_rows(
            tokenizer, part.rows, source=part.source, template=data.template, max_length=data.max_length, numbers=part.numbers
        )
        for reason, numbers in ((FILTERED, part.filtered), (OVERLAPPING, part.overlapping)):
            ledger.read += len(numbers)
            for number in numbers:
                ledger.drop(reason, number)
        rows += [{**row, "row": first_row + row["row"]} for row in encoded]
        counts.append(len(encoded))
        sources.append((part.source.path, first_row, ledger))
        whole.add(ledger, first_row)
    for warning in losses(whole, data.max_length):
        context.reporter.warn(f"{name}: {warning}.")
    return EncodedRows(rows, tuple(counts), whole, tuple(sources))


def losses(ledger: Ledger, max_length: int) -> Iterator[str]:
    """A sentence for each way in which rows were cut or left out, those that the user asked for aside."""
    if ledger.truncated:
        yield (
            f"{ledger.truncated} of {ledger.read} rows are cut at {max_length} tokens and do not learn to end: "
            f"they lose their end-of-sequence token ({ledger.rows_named()})"
        )
    for reason, count in ledger.dropped.items():
        if reason not in (FILTERED, OVERLAPPING):
            yield f"{count} of {ledger.read} rows are left out: {reason} ({ledger.rows_named(reason)})"


def mixture(data: DataSection, counts: Sequence[int], seed: int) -> Mixture:
    """How so many rows of each source make up a pass."""
    named = [source.weight for source in data.sources]
    weights = None if all(weight is None for weight in named) else tuple(1.0 if weight is None else weight for weight in named)
    return Mixture(tuple(counts), weights, seed)


def reading_order(recipe: Recipe, rows: Sequence[EncodedRow], counts: Sequence[int]) -> ReadingOrder:
    """The order in which training reads encoded rows, packed where the recipe asks for it."""
    lengths = [len(row["input_ids"]) for row in rows] if recipe.data.packing else None
    return ReadingOrder(mixture(recipe.data, counts, recipe.seed), lengths, recipe.data.max_length)


def _split(parts: list[SourceRows], fraction: float, seed: int) -> tuple[list[SourceRows], list[SourceRows]]:
    """Rows to learn from and held-out rows, both in their order; which ones are held out depends on the seed alone."""
    total = sum(len(part.rows) for part in parts)
    count = max(1, round(fraction * total))
    chosen = set(random.Random(seed).sample(range(total), count)) if count < total else set(range(total))
    training, held_out = [], []
    for part, first in zip(parts, accumulate((len(part.rows) for part in parts), initial=0), strict=False):
        places = range(len(part.rows))
        training.append(part.only((place for place in places if first + place not in chosen), part.filtered, part.overlapping))
        held_out.append(part.only(place for place in places if first + place in chosen))
        if not training[-1].rows:
            raise SokaError(
                f"A validation fraction of {fraction:g} leaves none of {len(part.rows)} rows to learn from.",
                where=f"data.validation.fraction, {part.source.path}",
                hint="lower the fraction or drop data.validation",
                exit_code=ExitCode.DATA,
            )
    return training, [part for part in held_out if part.rows]
