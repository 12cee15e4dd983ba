"""A real model on real rows through the command line: killed, resumed, and bit for bit the run that nobody disturbed."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode
from soka_cli.run.layout import RunLayout
from tests.builders import shared_folder, write_recipe
from tests.cli.test_train_processes import curve, weights
from tests.launched import environment, until

STEPS = 10


def recipe() -> dict[str, Any]:
    return {
        "model": {"name": str(shared_folder("models", "stories260K")), "dtype": "float32"},
        "adapter": {"method": "soka", "target_modules": "all-linear", "rank": {"rule": "fixed", "value": 2}},
        "data": {
            "train": {"path": str(shared_folder("data", "gsm8k", "train.jsonl")), "task": "gsm8k", "rows": 40},
            "validation": {"fraction": 0.1},
            "template": "plain",
            "max_length": 256,
        },
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "micro_batch_size": 2,
            "lr": 1e-3,
            "precision": "fp32",
            "save_every": 2,
            "eval_every": 5,
            "data_workers": 2,
        },
    }


def started(folder: Path, run: str) -> "subprocess.Popen[str]":
    words = ["train", "--recipe", str(folder / "recipe.yaml"), "--run", str(folder / run), "--device", "cpu", "--offline"]
    return subprocess.Popen([sys.executable, "-m", "soka_cli", *words], env=environment(), cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_real_run_killed_in_the_middle_ends_bit_equal(tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml", recipe())
    run, undisturbed = RunLayout(tmp_path / "run"), RunLayout(tmp_path / "undisturbed")
    first = started(tmp_path, "run")
    until(lambda: (run.checkpoints / "checkpoint-4").is_dir())
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    second, third = started(tmp_path, "run"), started(tmp_path, "undisturbed")
    said, _ = second.communicate()[1], third.communicate()
    assert second.returncode == third.returncode == ExitCode.DONE, said
    assert "Going on from checkpoint-" in said
    assert weights(run) == weights(undisturbed)
    assert curve(run) == curve(undisturbed)
    assert [row["step"] for row in curve(run)] == list(range(1, STEPS + 1))
