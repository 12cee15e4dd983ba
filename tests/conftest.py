"""What every test starts from: no network, no progress bars, one thread where the caller says so."""

import os
from pathlib import Path

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
