"""One finished pipeline for all tests that look at one."""

import shutil
from pathlib import Path

import pytest

from soka_cli.stages.outcome import Outcome
from soka_cli.stages.run import run
from tests.stages.pipeline import context_for, recipe_folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> tuple[Path, Outcome]:
    """A folder with a recipe and its finished run, and what the run said; copy it before changing anything."""
    folder = recipe_folder(tmp_path_factory.mktemp("pipeline"), llama_folder)
    return folder, run(context_for(folder))


@pytest.fixture
def copied(finished: tuple[Path, Outcome], tmp_path: Path) -> Path:
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    shutil.copy(finished[0] / "tiny.yaml", tmp_path)
    return tmp_path
