"""What every stage is called with."""

from dataclasses import dataclass, field

from soka_cli.recipe.load import LoadedRecipe
from soka_cli.recipe.schema import Recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import Reporter, SilentReporter


@dataclass(frozen=True)
class StageContext:
    """A resolved recipe, the run directory it works in, and how the user asked for it.

    `device` is auto, cpu or cuda[:k]; `command` is what the user typed, for the manifest and the resume hint. `unsafe_execution` runs
    model-written programs even where nothing isolates them.
    """

    loaded: LoadedRecipe
    layout: RunLayout
    reporter: Reporter = field(default_factory=SilentReporter)
    device: str = "auto"
    offline: bool = False
    force: bool = False
    command: str = ""
    unsafe_execution: bool = False

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe
