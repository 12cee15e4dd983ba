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
        from soka_cli.recipe.load import load_recipe
        from soka_cli.run.last import RUNS
        from soka_cli.run.last import last_run as remembered_run
        from soka_cli.run.layout import RunLayout
        from soka_cli.stages.context import StageContext

        recipe = self.recipe or default_recipe
        run = self.run
        if recipe is None and run is None and last_run:
            run = remembered_run()
        if recipe is not None:
            loaded = load_recipe(recipe, self.overrides)
        elif run is not None:
            loaded = load_of_run(run, self.overrides)
        else:
            raise self.needs_a_recipe(last_run)
        return StageContext(
            loaded=loaded,
            layout=RunLayout(run or RUNS / loaded.name),
            reporter=reporter,
            device=self.device,
            offline=self.offline,
            force=self.force,
            command=self.command,
        )

    def needs_a_recipe(self, last_run: bool) -> SokaError:
        return SokaError(
            f"soka {self.verb} needs a recipe",
            why="neither --recipe nor --run was given" + (" and no run was used in this folder before" if last_run else ""),
            hint=f"soka {self.verb} --recipe demo.yaml (soka recipes lists them)",
            exit_code=ExitCode.USAGE,
        )


def load_of_run(run: Path, overrides: Sequence[str]) -> LoadedRecipe:
    """The recipe that a run directory carries, with the user's own text and name kept."""
    from soka_cli.recipe.load import load_recipe
    from soka_cli.run.layout import RunLayout
    from soka_cli.run.stage import recorded_recipe

    layout = RunLayout(run)
    loaded = load_recipe(recorded_recipe(layout), overrides)
    source = layout.recipe_source.read_bytes().decode(errors="replace") if layout.recipe_source.is_file() else loaded.source_text
    return replace(loaded, name=run.name, source_text=source)
