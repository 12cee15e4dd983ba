"""Whether the rows that a recipe reads can be had here."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from soka_cli.errors import SokaError
from soka_cli.recipe.places import locate
from soka_cli.recipe.schema import Recipe
from soka_cli.stages.check import Check, attempt


class Source(NamedTuple):
    """Rows that the recipe names: the option that holds their place, and what pins them on the Hub."""

    option: str
    path: str
    revision: str | None
    config: str | None
    split: str


def source_checks(recipe: Recipe, *, reachable: bool) -> list[Check]:
    """A check of everything that the recipe reads rows from; `reachable` tells whether the Hub answers."""
    return [source_check(source, reachable=reachable) for source in sources(recipe)]


def sources(recipe: Recipe) -> Iterator[Source]:
    data = recipe.data
    for number, one in enumerate(data.sources):
        option = f"data.train.{number}.path" if isinstance(data.train, list) else "data.train.path"
        yield Source(option, one.path, one.revision, one.config, one.split)
    held_out = data.validation
    if held_out is not None and held_out.path is not None:
        yield Source("data.validation.path", held_out.path, None, data.sources[0].config, held_out.split or data.sources[0].split)
    for number, entry in enumerate(recipe.eval):
        yield Source(f"eval.{number}.path", entry.path, entry.revision, entry.config, entry.split)
        if entry.shots is not None and entry.shots.path is not None:
            yield Source(f"eval.{number}.shots.path", entry.shots.path, entry.shots.revision, entry.shots.config, entry.shots.split)


def source_check(source: Source, *, reachable: bool) -> Check:
    """A file or folder that is here, a data set in the data cache, or one that the Hub can be asked for."""
    name, path = source.option, source.path
    place = attempt(name, lambda: locate(path))
    if isinstance(place, Check):
        return place
    if isinstance(place, Path):
        return Check(name, "ok", f"{path} is here")
    if Path(path).is_absolute() or Path(path).suffix:
        return Check(name, "fail", f"there is no file {path}", f"put the file there, or name another one: {name}=FILE")
    if in_the_cache(source):
        return Check(name, "ok", f"{path}, a data set of the Hub, is in the data cache")
    if reachable:
        return Check(name, "ok", f"{path} is a data set of the Hub; the first stage that reads it fetches it")
    hint = f"read it once where there is a network (the cache is under HF_HOME), or write its rows to a file: {name}=FILE.jsonl"
    return Check(name, "fail", f"{path}, a data set of the Hub, is not in the data cache, and the Hub cannot be asked", hint)


def in_the_cache(source: Source) -> bool:
    """Whether the stages could read the data set without a network."""
    from soka_cli.data.load import load_rows

    try:
        load_rows(source.path, revision=source.revision, config=source.config, split=source.split, rows=1, offline=True)
    except SokaError:
        return False
    return True
