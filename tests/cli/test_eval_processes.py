"""An evaluation in several processes, through real launchers: the rows and scores of one, one error, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.stages.evaluate import evaluate
from tests.builders import gsm8k_file, recipe_mapping, stage_context, tiny_model_folder
from tests.soak.decompose_kills import workers

PATIENCE = 120.0  # seconds on a busy machine
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NAME = "gsm8k-plain"
ITEMS = 14


def recipe(folder: Path) -> dict[str, Any]:
    test = gsm8k_file(folder, ITEMS, "test.jsonl")
    entry = {"task": "gsm8k", "path": str(test), "max_new_tokens": 24, "batch_size": 2, "samples": 2, "temperature": 1.0}
    return recipe_mapping(folder / "base", test, eval=[entry])


@pytest.fixture
def alone(tmp_path: Path) -> RunLayout:
    """The evaluation in this process; the recipe `alone.yaml` lies beside it."""
    tiny_model_folder(tmp_path / "base")
    context = stage_context(tmp_path, recipe(tmp_path), run="alone")
    evaluate(context)
    layout: RunLayout = context.layout
    return layout


def words(folder: Path, *own: str) -> list[str]:
    return ["-m", "soka_cli", "eval", "-r", str(folder / "alone.yaml"), "-d", str(folder / "run"), "--device", "cpu", *own]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {"OMP_NUM_THREADS": "1"}


def rows_of(layout: RunLayout) -> list[dict[str, Any]]:
    return read_lines(layout.predictions(NAME, "base"))


def scores_of(layout: RunLayout) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads(layout.scores(NAME, "base").read_text())
    return {name: value for name, value in scores.items() if name not in ("seconds", "tokens_per_s", "asked")}


def until(what: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.01)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN, ACCELERATE], ids=["soka", "torchrun", "accelerate launch"])
def test_two_processes_leave_the_rows_and_scores_of_one_and_speak_once(launcher: tuple[str, ...], alone: RunLayout, tmp_path: Path) -> None:
    command = [sys.executable, *launcher, *words(tmp_path, "--json", *(() if launcher else ("--num-processes", "2")))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    run = RunLayout(tmp_path / "run")
    assert json.loads(done.stdout)["status"] == "done"
    assert run.predictions(NAME, "base").read_bytes() == alone.predictions(NAME, "base").read_bytes()
    assert scores_of(run) == scores_of(alone)
    assert run.predictions_parts(NAME, "base") == []
    assert json.loads(run.environment(f"eval/{NAME}-base").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_workers_error_comes_out_once_with_its_exit_code(alone: RunLayout, tmp_path: Path) -> None:
    command = [sys.executable, *words(tmp_path, "--num-processes", "2", "--json", f"model.name={tmp_path / 'none'}")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stdout.count('"error"') == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_killed_under_torchrun_it_goes_on_in_any_number_of_processes(alone: RunLayout, tmp_path: Path, victim: str) -> None:
    run = RunLayout(tmp_path / "run")
    launcher = subprocess.Popen([sys.executable, *TORCHRUN, *words(tmp_path)], env=environment(), cwd=tmp_path, stderr=subprocess.DEVNULL)
    until(lambda: launcher.poll() is not None or any(path.stat().st_size for path in run.predictions_parts(NAME, "base")))
    started = workers(launcher.pid)
    assert len(started) == 2
    os.kill(max(started) if victim == "worker" else launcher.pid, signal.SIGKILL)
    launcher.wait()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in started))
    answered = rows_of(run) + [row for path in run.predictions_parts(NAME, "base") for row in read_lines(path)]
    context = stage_context(tmp_path, recipe(tmp_path), run="run")
    evaluate(context)
    assert rows_of(run) == rows_of(alone)
    assert scores_of(run) == scores_of(alone)
    assert json.loads(run.scores(NAME, "base").read_text())["asked"] == 2 * ITEMS - len(answered)
