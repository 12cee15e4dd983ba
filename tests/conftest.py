"""What every test starts from: no network, no progress bars, one thread where the caller says so."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Read when transformers, datasets and huggingface_hub are imported, so before any test module is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("WANDB_API_KEY", None)

from tests import builders

if TYPE_CHECKING:
    from soka_cli.stages.outcome import Outcome


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained Llama with a byte tokenizer; read it, never write into it."""
    return builders.tiny_model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def gsm8k_file(tmp_path: Path) -> Path:
    """24 rows in GSM8K's form."""
    return builders.gsm8k_file(tmp_path)


@pytest.fixture
def shared() -> Path:
    """The folder of real models and data; skips where it is absent."""
    return builders.shared_folder()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> "tuple[Path, Outcome]":
    """A folder with a recipe and its finished run, and what the run said; copy it before changing anything."""
    from soka_cli.stages.run import run
    from tests.stages.pipeline import context_for, recipe_folder

    folder = recipe_folder(tmp_path_factory.mktemp("pipeline"), llama_folder)
    return folder, run(context_for(folder))


@pytest.fixture
def copied(finished: "tuple[Path, Outcome]", tmp_path: Path) -> Path:
    """A copy of that folder's recipe and run, to change."""
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    shutil.copy(finished[0] / "tiny.yaml", tmp_path)
    return tmp_path
