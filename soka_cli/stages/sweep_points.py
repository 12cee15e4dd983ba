"""A sweep section -> its runs: every method over the grid, each run a name and the overrides that make it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import LOCATIONS, LoadedRecipe, load_recipe
from soka_cli.recipe.places import resolve
from soka_cli.recipe.schema import Recipe, SweepSection

LONGEST_NAME = 120  # letters of a folder's name; longer ones end in a digest
RESERVED = ("logs", "report")  # folders of the sweep itself
RATE = "train.lr"
STEPS = "train.steps"


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: its folder.
        method: the name under sweep.methods, or the recipe's own method.
        values: the grid's options by dotted path.
        overrides: what makes the recipe this run's, as the command line takes it.
        recipe: the result.
    """

    name: str
    method: str
    values: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def setting(self) -> tuple[str, str]:
        """What runs of several seeds have in common."""
        return self.method, json.dumps(self.values, sort_keys=True)

    def of_length(self, steps: int, source: Path, folder: Path, *, apart: bool) -> "Point":
        """The same run for so many steps; `apart` in a folder of its own."""
        overrides = (*self.overrides, f"{STEPS}={steps}")
        name = f"{self.name}-{steps}steps" if apart else self.name
        return replace(self, name=name, overrides=overrides, recipe=load_recipe(source, overrides, folder=folder).recipe)


@dataclass(frozen=True)
class Sweep:
    """A recipe's sweep section and what it is laid over.

    Attributes:
        source: the recipe's file.
        overrides: the user's own, which every run gets first.
        folder: what paths in overrides are relative to.
    """

    section: SweepSection
    loaded: LoadedRecipe
    source: Path
    overrides: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, loaded: LoadedRecipe, overrides: Sequence[str], folder: Path | None = None) -> "Sweep":
        """Raises SokaError (exit 2) where the recipe has no sweep section."""
        section = loaded.recipe.sweep
        if section is None or loaded.path is None:
            raise SokaError(
                f"Recipe {loaded.name} has no section sweep",
                where=str(loaded.path or loaded.name),
                hint="add sweep: {grid: {train.lr: [1e-3, 2e-3]}}, or write a file that extends the recipe and has one (soka recipes)",
                exit_code=ExitCode.USAGE,
            )
        own = tuple(text for text in overrides if not text.startswith(("sweep.", "sweep=")))
        return cls(section, loaded, loaded.path, own, folder or Path.cwd())

    @property
    def methods(self) -> list[str]:
        return list(self.section.methods) or [self.loaded.recipe.adapter.method]

    def axes(self, method: str) -> dict[str, list[Any]]:
        """Options and values to try of a method: the common grid, with what the method says itself in its place."""
        own = self.section.methods[method].grid if method in self.section.methods else {}
        return {**self.section.grid, **own}

    def points(self) -> list[Point]:
        """All runs of the grid, method by method.

        Raises:
            SokaError: exit 2, values that make no recipe, all of them at once, or two runs of one name.
        """
        seeds = self.section.seeds or [self.loaded.recipe.seed]
        found, mistakes = [], []
        for method in self.methods:
            axes = self.axes(method)
            for values in product(*axes.values()):
                for seed in seeds:
                    try:
                        found.append(self.point(method, dict(zip(axes, values, strict=True)), seed))
                    except SokaError as error:
                        mistakes += error.why.splitlines()
        if mistakes:
            raise self.wrong(list(dict.fromkeys(mistakes)))
        refuse_equal_names(found)
        return found

    def wrong(self, mistakes: Sequence[str]) -> SokaError:
        return SokaError(
            "the sweep has values that make no recipe",
            where=f"{self.source}, section sweep",
            why="\n".join(mistakes),
            hint="an option that some methods do not read belongs under sweep.methods.NAME.grid, not under sweep.grid",
            exit_code=ExitCode.USAGE,
        )

    def point(self, method: str, values: dict[str, Any], seed: int) -> Point:
        """One run; SokaError (exit 2) where its values make no recipe."""
        settings = self.section.methods[method].set if method in self.section.methods else {}
        written = (assignment(path, value, self.source.parent) for path, value in {**settings, **values}.items())
        overrides = (*self.overrides, *written, f"seed={seed}", "sweep=null")
        recipe = load_recipe(self.source, overrides, folder=self.folder).recipe
        seeds = {*(self.section.seeds or [self.loaded.recipe.seed]), *self.section.best_seeds}
        parts = [
            *(f"{path.rpartition('.')[2]}{word(value)}" for path, value in values.items()),
            *([f"seed{seed}"] if len(seeds) > 1 else []),
        ]
        return Point(folder_name([method, *parts]), method, values, seed, overrides, recipe)


def assignment(path: str, value: Any, folder: Path) -> str:
    """`train.lr=0.001`; files that lie beside the recipe by their whole paths."""
    keys = tuple("*" if key.isdecimal() else key for key in path.split("."))
    return f"{path}={json.dumps(settled(value, keys, folder))}"


def settled(value: Any, keys: tuple[str, ...], folder: Path) -> Any:
    """The value of an option, its locations made independent of the recipe's folder, those inside mappings and lists too."""
    if isinstance(value, dict):
        return {key: settled(inner, (*keys, key), folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [settled(inner, (*keys, "*"), folder) for inner in value]
    return resolve(value, folder) if keys in LOCATIONS and isinstance(value, str) and value else value


def word(value: Any) -> str:
    """A value in a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else ".".join(leaves(value))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "none"


def leaves(value: Any) -> Iterator[str]:
    """The words of a value; of a mapping without its keys."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield f"{value:g}" if isinstance(value, float) else str(value)


def folder_name(parts: Sequence[str]) -> str:
    name = "-".join(parts)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def refuse_equal_names(points: Sequence[Point]) -> None:
    names = [point.name for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1 or name in RESERVED}):
        raise SokaError(
            f"runs of the sweep would share the folder {twice[0]}",
            where="sweep",
            why="a value is listed twice, or values differ only in signs that a folder's name does not carry",
            hint="drop one of them, or give methods names of their own",
            exit_code=ExitCode.USAGE,
        )
