"""Decompose killed with -9 at random moments goes on, and ends with the files of a run that nobody disturbed."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from soka_cli.run.layout import RunLayout
from tests.builders import gsm8k_file, recipe_mapping, stage_context
from tests.soak.sameness import differences

MODULES, KILLS = 56, 3
FORKSERVER = multiprocessing.get_context("forkserver")


def base_folder(folder: Path) -> Path:
    """A Llama of eight layers: enough modules for a second of work."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 8, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes, tie_word_embeddings=False)).save_pretrained(folder)
    return folder


def work(folder: Path, mapping: dict[str, Any], run: str) -> None:
    """In a process of its own: what `soka decompose` does."""
    import torch

    from soka_cli.stages.decompose import decompose

    torch.set_num_threads(1)
    decompose(stage_context(folder, mapping, run=run))


def parts(run: RunLayout) -> int:
    return len(list(run.decompose_parts.glob("[!.]*"))) if run.decompose_parts.is_dir() else 0


@pytest.fixture(scope="module", autouse=True)
def libraries_at_hand() -> None:
    FORKSERVER.set_forkserver_preload(["soka_cli.stages.decomposition", "tests.builders", __name__])


@pytest.mark.slow
def test_killed_three_times_at_random_it_ends_with_the_files_of_an_undisturbed_run(tmp_path: Path) -> None:
    adapter = {"target_modules": "all-linear", "rank": {"rule": "min", "max": 4}}
    mapping = recipe_mapping(base_folder(tmp_path / "base"), gsm8k_file(tmp_path), adapter=adapter)
    undisturbed, disturbed = RunLayout(tmp_path / "undisturbed"), RunLayout(tmp_path / "disturbed")
    choose = random.Random()
    moments = sorted(choose.sample(range(MODULES - 1), KILLS))
    for moment in moments:
        process = FORKSERVER.Process(target=work, args=(tmp_path, mapping, "disturbed"))
        process.start()
        while parts(disturbed) <= moment and process.is_alive():
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.02))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"it ended before its kill at {moments}"
        assert not disturbed.decompose.exists()
    for run in ("disturbed", "undisturbed"):
        process = FORKSERVER.Process(target=work, args=(tmp_path, mapping, run))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert differences(undisturbed, disturbed) == [], f"killed after {moments} modules"
    assert not disturbed.decompose_parts.exists()
