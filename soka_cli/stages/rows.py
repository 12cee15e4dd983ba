"""The rows that a run learns from: loaded, some held out, encoded; and what stands for them among a stage's inputs."""

import random
from typing import Any

from soka_cli.data.encode import EncodedRow, Ledger, encode_rows
from soka_cli.data.load import Row, load_rows, source_digest
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.resolved import to_mapping
from soka_cli.recipe.schema import Recipe, SourceSection
from soka_cli.stages.context import StageContext


def data_inputs(recipe: Recipe) -> dict[str, Any]:
    """The data section with local files by their digest, so that a moved run directory stays valid."""
    data = dict(to_mapping(recipe)["data"])
    for name in ("train", "validation"):
        source = data.get(name)
        if source and source.get("path") and (digest := source_digest(source["path"])):
            data[name] = {key: value for key, value in source.items() if key != "path"} | {"sha256": digest}
    return data


def read_rows(context: StageContext) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and those held out for validation (none where the recipe asks for none), as they are in the source.

    Raises:
        SokaError: exit 4 for data that is missing or damaged, or a validation that leaves nothing.
    """
    data = context.recipe.data
    everything = _load(context, data.train)
    validation = data.validation
    if validation is not None and validation.path is not None:
        changes = {
            "path": validation.path,
            "revision": None,
            "split": validation.split or data.train.split,
            "rows": validation.rows,
        }
        return everything, _load(context, data.train.model_copy(update=changes))
    if validation is not None and validation.fraction is not None:
        return _split(everything, validation.fraction, context.recipe.seed)
    return everything, []


def encode(context: StageContext, tokenizer: Any, rows: list[Row], name: str) -> tuple[list[EncodedRow], Ledger]:
    """Ids and labels, with a warning for what was cut or left out; `name` is what the user calls these rows.

    Raises:
        SokaError: exit 4 for a missing column, exit 7 where no row has a supervised token.
    """
    data, say = context.recipe.data, context.reporter
    encoded, ledger = encode_rows(tokenizer, rows, source=data.train, template=data.template, max_length=data.max_length)
    if ledger.truncated:
        say.warn(f"{name}: {ledger.truncated} of {ledger.read} rows are cut at {data.max_length} tokens and do not learn to end.")
    for reason, count in ledger.dropped.items():
        say.warn(f"{name}: {count} of {ledger.read} rows are left out: {reason}.")
    return encoded, ledger


def _load(context: StageContext, source: SourceSection) -> list[Row]:
    return load_rows(
        source.path,
        revision=source.revision,
        config=source.config,
        split=source.split,
        rows=source.rows,
        filter=source.filter,
        task=source.task,
        offline=context.offline,
    )


def _split(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and held-out rows, both in their order; which ones are held out depends on the seed alone."""
    count = max(1, round(fraction * len(rows)))
    if count >= len(rows):
        raise SokaError(
            f"A validation fraction of {fraction:g} leaves none of {len(rows)} rows to learn from.",
            where="data.validation.fraction",
            hint="lower the fraction or drop data.validation",
            exit_code=ExitCode.DATA,
        )
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [row for index, row in enumerate(rows) if index in chosen],
    )
