"""Rows from a local file or, by name and revision, from the Hub."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.places import expanded, locate
from soka_cli.recipe.schema import SourceSection
from soka_cli.run.digest import file_digest, folder_digest
from soka_cli.tasks.splits import belongs

Row = dict[str, Any]
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field: what a C long holds on every platform
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves beside the tables


@dataclass(frozen=True)
class SourceRows:
    """Rows taken from one training source.

    Attributes:
        source: where they are from.
        rows: the rows in the source's order.
        numbers: of each row its place in the source, the first record being 0.
        filtered: the places of the records that the filter left out before the last row taken.
        overlapping: the places of the rows that were left out because an evaluation has them too.
        size: records that were looked at.
    """

    source: SourceSection
    rows: list[Row]
    numbers: list[int]
    filtered: list[int]
    size: int
    overlapping: tuple[int, ...] = ()

    def only(self, indices: Iterable[int], filtered: Sequence[int] = (), overlapping: Sequence[int] = ()) -> "SourceRows":
        """Some of the rows."""
        chosen = list(indices)
        return replace(
            self,
            rows=[self.rows[index] for index in chosen],
            numbers=[self.numbers[index] for index in chosen],
            filtered=list(filtered),
            overlapping=tuple(overlapping),
        )


def load_rows(
    path: str,
    *,
    revision: str | None = None,
    config: str | None = None,
    split: str = "train",
    rows: int | None = None,
    filter: Mapping[str, str] | None = None,
    task: str | None = None,
    offline: bool = False,
) -> list[Row]:
    """The rows of a data source in their own order.

    Args:
        path: a .jsonl, .json, .csv or .parquet file, a `soka:` name, a folder of such files or one that `datasets` saved, or a Hub id.
        revision, config, split: of a Hub data set; a file has none of them.
        rows: the first rows that are taken, after `filter`; None takes all.
        filter: column -> value, as text; only rows that hold all of them stay.
        task: the benchmark whose rows these are; where it comes as one file, `split` keeps the rows of that split (tasks/splits.py).
        offline: read the Hub's local cache alone.

    Raises:
        SokaError: exit 4 for a missing or damaged file, a missing column, nothing left; exit 3 where the Hub can't be asked.
    """
    place = _place(path)
    every = _records(place, revision=revision, config=config, split=split, task=task, offline=offline)
    return [row for _, row in _taken(path, split, every, rows, filter or {}, [])]


def load_source(source: SourceSection, *, offline: bool = False) -> SourceRows:
    """The rows of a recipe's training source, with their places in it. Raises what load_rows does."""
    place = _place(source.path)
    every = _records(place, revision=source.revision, config=source.config, split=source.split, task=source.task, offline=offline)
    filtered: list[int] = []
    taken = _taken(source.path, source.split, every, source.rows, source.filter, filtered)
    numbers = [number for number, _ in taken]
    return SourceRows(source, [row for _, row in taken], numbers, filtered, 1 + max([*numbers[-1:], *filtered[-1:]]))


def stream_source(source: SourceSection, *, offline: bool = False) -> Iterator[tuple[int, Row]]:
    """Place and content of the rows that `load_source` takes, one after another. Raises what it does, as they are taken."""
    place = _place(source.path)
    every = _records(place, revision=source.revision, config=source.config, split=source.split, task=source.task, offline=offline)
    yield from islice(_filtered(every, source.filter, source.path, []), source.rows)


def _records(
    place: Path | str, *, revision: str | None, config: str | None, split: str, task: str | None, offline: bool
) -> Iterator[tuple[int, Row]]:
    """Place and content of every record of the split."""
    if isinstance(place, Path) and place.is_file():
        return ((number, row) for number, row in enumerate(_read_file(place)) if belongs(row, task, split))
    return iter(enumerate(_read_hub(str(place), revision=revision, config=config, split=split, offline=offline)))


def _taken(
    path: str, split: str, every: Iterator[tuple[int, Row]], most: int | None, wanted: Mapping[str, str], left_out: list[int]
) -> list[tuple[int, Row]]:
    """Place and content of the rows that are taken; the places of those that the filter leaves out go to `left_out`."""
    taken = list(islice(_filtered(every, wanted, path, left_out), most))
    if not taken:
        raise SokaError(
            "The data source has no rows.", where=f"{path}, split {split}", hint="name another file or split", exit_code=ExitCode.DATA
        )
    return taken


def source_digest(path: str) -> str | None:
    """sha256 (hex) of a local file's or folder's content; None for a Hub data set, which its revision pins.

    Raises:
        SokaError: exit 4 for a file that is not there.
    """
    place = _place(path)
    if not isinstance(place, Path):
        return None
    return file_digest(place) if place.is_file() else folder_digest(place)


def require_columns(row: Mapping[str, Any], columns: Iterable[str], path: str) -> None:
    """Refuse a source whose rows lack one of `columns` (exit 4), naming those that are there."""
    if missing := [column for column in columns if column not in row]:
        there = [str(column) for column in row]
        near = {column: get_close_matches(column, there, n=1, cutoff=0.5) for column in missing}
        meant = ", ".join(f"{names[0]} for {column}" for column, names in near.items() if names)
        raise SokaError(
            f"The data has no column {', '.join(missing)}.",
            where=path,
            why=f"its columns are {', '.join(there)}",
            hint=f"{f'did you mean {meant}? ' if meant else ''}name columns that are there (prompt, target, messages), or another task",
            exit_code=ExitCode.DATA,
        )


def _place(path: str) -> Path | str:
    """The file or folder that `path` means, or the Hub id that it is."""
    place = locate(path)
    if not isinstance(place, Path) and _is_file_name(path):
        near = _nearest_file(expanded(path))
        raise SokaError(
            "The data file does not exist.",
            where=path,
            hint=f"{f'did you mean {near}? ' if near else ''}correct the path of data.train or of the eval entry",
            exit_code=ExitCode.DATA,
        )
    return place


def _nearest_file(path: Path) -> Path | None:
    """The data file beside `path` that was probably meant."""
    try:
        beside = [entry for entry in path.parent.iterdir() if entry.suffix in READERS and entry.is_file()]
    except (OSError, ValueError):
        return None
    near = get_close_matches(path.name, [entry.name for entry in beside], n=1)
    return path.with_name(near[0]) if near else None


def _is_file_name(path: str) -> bool:
    return Path(path).suffix in READERS or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1


def _filtered(records: Iterable[tuple[int, Row]], wanted: Mapping[str, str], path: str, left_out: list[int]) -> Iterator[tuple[int, Row]]:
    """The records that hold `wanted`; says which values there are where none does. The places of the others go to `left_out`."""
    seen: dict[str, Counter[str]] = {column: Counter() for column in wanted}
    kept = 0
    for number, row in records:
        require_columns(row, wanted, path)
        for column in wanted:
            seen[column][str(row[column])] += 1
        if all(str(row[column]) == value for column, value in wanted.items()):
            kept += 1
            yield number, row
        else:
            left_out.append(number)
    if wanted and not kept and any(seen.values()):
        there = "; ".join(f"{column}: {', '.join(value for value, _ in counts.most_common(5))}" for column, counts in seen.items())
        raise SokaError(
            f"No row passes the filter {dict(wanted)}.",
            where=path,
            why=f"the commonest values are {there}",
            hint="correct or drop filter",
            exit_code=ExitCode.DATA,
        )


def _read_file(path: Path) -> Iterator[Row]:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise SokaError(
            f"The data file's ending {path.suffix or '(none)'} is not known.",
            where=str(path),
            hint=f"use one of {', '.join(READERS)}",
            exit_code=ExitCode.DATA,
        )
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(where: Path | str, why: str) -> SokaError:
    return SokaError("The data file can't be read.", where=str(where), why=why, hint="repair or fetch the file", exit_code=ExitCode.DATA)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _damaged(f"{path}:{number}", str(error)) from error
            if not isinstance(row, dict):
                raise _damaged(f"{path}:{number}", "the line is no JSON object")
            yield row


def _json_array(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _damaged(path, "it holds no JSON array of objects; one object a line is .jsonl")
    yield from rows


def _comma_separated(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise _damaged(f"{path}:{reader.line_num}", "the line has more or fewer fields than the heading")
                yield dict(row)
        except csv.Error as error:
            raise _damaged(f"{path}:{reader.line_num}", str(error)) from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise _damaged(path, str(error)) from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _comma_separated,
    ".parquet": _parquet,
}


def _read_hub(name: str, *, revision: str | None, config: str | None, split: str, offline: bool) -> Iterable[Row]:
    """Rows of a Hub data set (or a folder laid out like one, or that `save_to_disk` wrote), through `datasets`."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    where = f"{name}, configuration {config or 'default'}, split {split}"
    saved = any((Path(name) / marker).is_file() for marker in SAVED)
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        loaded = _saved(Path(name), split) if saved else datasets.load_dataset(name, config, split=split, revision=revision)
    except DatasetNotFoundError as error:
        raise SokaError(
            "The data set does not exist, or is gated.",
            where=where,
            why=str(error),
            hint="correct the name; for a gated data set accept its terms on the Hub and run: hf auth login",
            exit_code=ExitCode.DATA,
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise SokaError(
            "The data set can't be fetched.",
            where=where,
            why=str(error),
            hint="fetch it once with a network, or set path to a local .jsonl file",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    except (DatasetsError, ValueError, RuntimeError, OSError) as error:
        near = get_close_matches(
            split, re.findall(r"['\"]([\w.-]+)['\"]", str(error).lower().partition("should be one of")[2]), n=1, cutoff=0.5
        )
        raise SokaError(
            "The data set can't be read.",
            where=where,
            why=str(error),
            hint=f"{f'did you mean split {near[0]}? ' if near else ''}correct config, split or revision",
            exit_code=ExitCode.DATA,
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    return iter(loaded)


def _saved(folder: Path, split: str) -> Iterable[Row]:
    """A folder that `save_to_disk` wrote: of several splits the one named, of one data set all."""
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if not isinstance(loaded, datasets.DatasetDict):
        return iter(loaded)
    if split not in loaded:
        raise ValueError(f"unknown split {split}; it should be one of {list(loaded)}")
    return iter(loaded[split])
