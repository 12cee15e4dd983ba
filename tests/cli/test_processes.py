"""Decompose in several processes, through real launchers: the same files as in one, one error, and nobody left behind."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from soka_cli.errors import ExitCode
from soka_cli.run.layout import RunLayout
from soka_cli.stages.decompose import decompose
from tests.builders import gsm8k_file, recipe_mapping, stage_context, tiny_model_folder
from tests.launched import ACCELERATE, TORCHRUN, environment, until
from tests.soak.decompose_kills import workers
from tests.soak.sameness import differences


def recipe(folder: Path) -> dict[str, Any]:
    adapter = {"target_modules": "all-linear", "rank": {"rule": "min", "max": 4}}
    return recipe_mapping(folder / "base", gsm8k_file(folder), adapter=adapter)


@pytest.fixture
def undisturbed(tmp_path: Path) -> RunLayout:
    """A run in this process; the recipe `undisturbed.yaml` lies beside it."""
    tiny_model_folder(tmp_path / "base")
    context = stage_context(tmp_path, recipe(tmp_path), run="undisturbed")
    decompose(context)
    return context.layout


def words(folder: Path, *own: str) -> list[str]:
    return ["-m", "soka_cli", "decompose", "-r", str(folder / "undisturbed.yaml"), "-d", str(folder / "run"), "--device", "cpu", *own]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ACCELERATE], ids=["soka", "accelerate launch"])
def test_two_processes_leave_the_files_of_one_and_speak_once(undisturbed: RunLayout, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    own = () if launcher else ("--num-processes", "2")
    command = [sys.executable, *launcher, *words(tmp_path, "--json", *own)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    assert differences(undisturbed, RunLayout(tmp_path / "run")) == []
    assert json.loads(RunLayout(tmp_path / "run").environment("decompose").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_workers_error_comes_out_once_with_its_exit_code(undisturbed: RunLayout, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "base", tmp_path / "broken")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    for tensor in tensors.values():
        tensor.view(-1)[5] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, *words(tmp_path, "--num-processes", "2", "--json", f"model.name={tmp_path / 'broken'}")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "is not finite" in json.loads(done.stdout)["error"]["what"]
    assert done.stderr.count("is not finite") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_under_torchrun_a_killed_launcher_leaves_no_worker_and_the_run_goes_on(undisturbed: RunLayout, tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    launcher = subprocess.Popen([sys.executable, *TORCHRUN, *words(tmp_path)], env=environment(), cwd=tmp_path, stderr=subprocess.DEVNULL)
    until(lambda: run.decompose_parts.is_dir() and any(run.decompose_parts.glob("[!.]*")))
    left = [Path(f"/proc/{worker}") for worker in workers(launcher.pid)]
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert len(left) == 2
    until(lambda: not any(process.exists() for process in left))
    decompose(stage_context(tmp_path, recipe(tmp_path), run="run"))
    assert differences(undisturbed, run) == []
