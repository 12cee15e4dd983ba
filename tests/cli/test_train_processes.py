"""Training in two processes, through real launchers: the curve of one, and nothing lost when one of them dies."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from soka_cli.errors import ExitCode
from soka_cli.run.layout import RunLayout
from soka_cli.stages.train import train
from tests.builders import gsm8k_file, recipe_mapping, stage_context, tiny_model_folder
from tests.launched import ACCELERATE, TORCHRUN, environment, until
from tests.soak.decompose_kills import workers

STEPS = 8
ROOT = Path(__file__).parents[2]
MEASURED = ("tokens_per_s", "memory_bytes")


def recipe(folder: Path, kind: str = "llama") -> dict[str, Any]:
    """GPT-2 has dropout, so that the random state of each process matters, and here each has a process that makes its batches."""
    model = folder / kind
    if not model.exists():
        tiny_model_folder(model, kind)
        gsm8k_file(folder)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    made = recipe_mapping(model, folder / "train.jsonl", data={"validation": {"fraction": 0.2}}, adapter={"target_modules": targets})
    made["train"] |= {"steps": STEPS, "save_every": 2, "eval_every": 4, "keep_checkpoints": 8, "micro_batch_size": 1}
    made["train"] |= {"data_workers": 1} if kind == "gpt2" else {}
    return made


def words(folder: Path, run: str, *own: str) -> list[str]:
    return ["-m", "soka_cli", "train", "-r", str(folder / "one.yaml"), "-d", str(folder / run), "--device", "cpu", *own]


def launched(folder: Path, run: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    own = ["--json"] if launcher else ["--json", "--num-processes", "2"]
    command = [sys.executable, *launcher, *words(folder, run, *own)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=folder)


def curve(run: RunLayout) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def weights(run: RunLayout) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def started(folder: Path, run: str) -> tuple[subprocess.Popen[bytes], RunLayout]:
    """Two processes, on their way, once the first checkpoint is there."""
    layout = RunLayout(folder / run)
    command = [sys.executable, *words(folder, run, "--num-processes", "2")]
    launcher = subprocess.Popen(command, env=environment(), cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: (layout.checkpoints / "checkpoint-2").is_dir())
    return launcher, layout


@pytest.fixture(scope="module")
def dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe of a model with dropout, and the run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("dropout")
    stage_context(folder, recipe(folder, "gpt2"), run="one")
    done = launched(folder, "undisturbed")
    assert done.returncode == ExitCode.DONE, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN, ACCELERATE], ids=["soka", "torchrun", "accelerate launch"])
def test_two_processes_take_the_steps_of_one(launcher: tuple[str, ...], tmp_path: Path) -> None:
    context = stage_context(tmp_path, recipe(tmp_path), run="one")
    train(context)
    done = launched(tmp_path, "two", launcher)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    two = RunLayout(tmp_path / "two")
    assert_alike(context.layout, two)
    assert json.loads(two.environment("train").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing(dropout: Path) -> None:
    launcher, run = started(dropout, "worker-killed")
    subprocess.run(["kill", "-9", str(workers(launcher.pid)[-1])], check=True)
    assert launcher.wait() == ExitCode.RESOURCES
    assert launched(dropout, "worker-killed").returncode == ExitCode.DONE
    undisturbed = RunLayout(dropout / "undisturbed")
    assert curve(run) == curve(undisturbed)
    assert weights(run) == weights(undisturbed)


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_worker_and_loses_nothing(dropout: Path) -> None:
    launcher, run = started(dropout, "launcher-killed")
    left = [Path(f"/proc/{process}") for worker in workers(launcher.pid) for process in (worker, *workers(worker))]
    launcher.kill()
    assert launcher.wait() == -signal.SIGKILL
    assert len(left) >= 4  # two that train, two that make batches
    until(lambda: not any(process.exists() for process in left))
    assert launched(dropout, "launcher-killed").returncode == ExitCode.DONE
    undisturbed = RunLayout(dropout / "undisturbed")
    assert curve(run) == curve(undisturbed)
    assert weights(run) == weights(undisturbed)


@pytest.mark.slow
def test_a_terminated_launcher_leaves_a_checkpoint_of_one_step_and_no_worker(dropout: Path) -> None:
    launcher, run = started(dropout, "launcher-terminated")
    left = [Path(f"/proc/{worker}") for worker in workers(launcher.pid)]
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == ExitCode.TERMINATED
    until(lambda: not any(process.exists() for process in left))
    newest = max(int(path.name.partition("-")[2]) for path in run.checkpoints.glob("checkpoint-*"))
    assert curve(run)[-1]["step"] == newest < STEPS
    assert launched(dropout, "launcher-terminated").returncode == ExitCode.DONE
    assert weights(run) == weights(RunLayout(dropout / "undisturbed"))


def sharded(folder: Path, run: str, *own: str) -> subprocess.CompletedProcess[str]:
    """Two processes that share the model out, each holding half of every tensor."""
    command = [sys.executable, *TORCHRUN, "-m", "tests.soak.fsdp_on_cpu", *words(folder, run, "--json", "train.strategy=fsdp2", *own)[2:]]
    return subprocess.run(command, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=folder)


def assert_alike(run: RunLayout, other: RunLayout) -> None:
    """The same steps and the same adapter, up to the order of sums: 1e-6, of a value, in weights of one."""
    for mine, theirs in zip(curve(run), curve(other), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-6)
    one, two = (load_file(each.adapter / "adapter_model.safetensors") for each in (run, other))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_model_that_is_shared_out_takes_the_steps_of_one_and_goes_on_in_either_way(tmp_path: Path) -> None:
    context = stage_context(tmp_path, recipe(tmp_path), run="one")
    train(context)
    done = sharded(tmp_path, "two")
    assert done.returncode == ExitCode.DONE, done.stderr
    two = RunLayout(tmp_path / "two")
    assert_alike(context.layout, two)
    state = torch.load(two.checkpoints / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
    assert all(isinstance(name, str) for name in state["state"])  # as only a sharded model writes it
    longer = f"train.steps={STEPS + 2}"
    assert subprocess.run([sys.executable, *words(tmp_path, "two", longer)], env=environment(), cwd=tmp_path).returncode == ExitCode.DONE
    assert sharded(tmp_path, "one", longer).returncode == ExitCode.DONE
    assert len(curve(two)) == STEPS + 2
    assert_alike(context.layout, two)


@pytest.mark.slow
def test_sharing_out_where_it_would_silently_not_happen_is_refused(tmp_path: Path) -> None:
    stage_context(tmp_path, recipe(tmp_path), run="one")
    command = [sys.executable, *words(tmp_path, "two", "--num-processes", "2", "--json", "train.strategy=fsdp2")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "FSDP2 was asked for" in json.loads(done.stdout)["error"]["what"]
