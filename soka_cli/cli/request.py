"""What the user asked for in options that all verbs share, and the context that a stage gets from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from soka_cli.errors import ExitCode, SokaError

if TYPE_CHECKING:
    from soka_cli.recipe.load import LoadedRecipe
    from soka_cli.run.reporter import Reporter
    from soka_cli.stages.context import StageContext

RUNS = Path("runs")


@dataclass(frozen=True)
class Request:
    """The common options of one call."""

    verb: str
    overrides: tuple[str, ...] = ()
    recipe: str | None = None
    run: Path | None = None
    device: str = "auto"
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    offline: bool = False
    force: bool = False
    command: str = ""

    def context(self, reporter: Reporter, *, default_recipe: str | None = None, last_run: bool = False) -> StageContext:
        """The stage's context: recipe loaded, run directory named.

        Args:
            default_recipe: taken when neither a recipe nor a run is named (the demo's).
            last_run: without options, use the run directory used last in this folder.
        """
        from soka_cli.run.layout import RunLayout
        from soka_cli.stages.context import StageContext

        run = self.run
        if self.recipe is None and run is None and default_recipe is None:
            run = last_run_directory() if last_run else None
            if run is None:
                raise SokaError(
                    f"soka {self.verb} needs a recipe",
                    why="neither --recipe nor --run was given" + (" and no run was used in this folder before" if last_run else ""),
                    hint=f"soka {self.verb} --recipe demo.yaml (soka recipes lists them)",
                    exit_code=ExitCode.USAGE,
                )
        recipe = self.recipe or (default_recipe if run is None or not (run / "recipe.yaml").exists() else None)
        loaded = load_named(recipe, self.overrides) if recipe is not None else load_of_run(run or RUNS, self.overrides)
        return StageContext(
            loaded=loaded,
            layout=RunLayout(run or RUNS / loaded.name),
            reporter=reporter,
            device=self.device,
            offline=self.offline,
            force=self.force,
            command=self.command,
        )


def load_named(recipe: str, overrides: Sequence[str]) -> LoadedRecipe:
    from soka_cli.recipe.load import load_recipe

    return load_recipe(recipe, overrides)


def load_of_run(run: Path, overrides: Sequence[str]) -> LoadedRecipe:
    """The recipe that a run directory carries, with the user's own text and name kept."""
    from soka_cli.recipe.load import load_recipe
    from soka_cli.run.layout import RunLayout

    layout = RunLayout(run)
    if not layout.recipe.is_file():
        raise SokaError(
            "this is no run directory",
            where=str(run),
            why="it has no recipe.yaml" if run.is_dir() else "the folder does not exist",
            hint=f"name the recipe too: --recipe NAME --run {run}",
            exit_code=ExitCode.RUN,
        )
    loaded = load_recipe(layout.recipe, overrides)
    source = layout.recipe_source.read_text(encoding="utf8") if layout.recipe_source.is_file() else loaded.source_text
    return replace(loaded, name=run.name, source_text=source)


def last_run_directory() -> Path | None:
    """The run directory used last in this folder, from runs/.last."""
    pointer = RUNS / ".last"
    if not pointer.is_file():
        return None
    run = Path(pointer.read_text(encoding="utf8").strip())
    return run if run.is_dir() else None
