"""A recipe on the tiny model and the context of its run."""

from pathlib import Path
from typing import Any

from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.context import StageContext
from tests import builders


def context_for(folder: Path, *overrides: str, force: bool = False, run: str = "runs/tiny") -> StageContext:
    loaded = load_recipe(folder / "tiny.yaml", overrides)
    return StageContext(loaded, RunLayout(folder / run), reporter=SilentReporter(), device="cpu", offline=True, force=force)


def recipe_folder(folder: Path, model: Path, **sections: Any) -> Path:
    train, test = builders.gsm8k_file(folder), builders.gsm8k_file(folder, 5, "test.jsonl")
    entry = {"task": "gsm8k", "protocol": "plain", "path": str(test), "max_new_tokens": 6, "batch_size": 4}
    builders.write_recipe(folder / "tiny.yaml", builders.recipe_mapping(model, train, **{"eval": [entry], **sections}))
    return folder
