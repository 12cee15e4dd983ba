"""Interrupted, killed, damaged, extended: the weights come out as if nothing had happened."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.interrupt import Interrupted
from soka_cli.run.reporter import SilentReporter, SilentTask
from soka_cli.stages.train import train
from soka_cli.stages.trainer import RunTrainer
from tests import builders

STEPS = 6
MEASURED = ("tokens_per_s", "memory_bytes")


class Killed(BaseException):
    """Stands for SIGKILL where a process of its own would prove nothing more: nothing catches it."""


def mapping(folder: Path, method: str = "soka", /, *, kind: str = "llama", **sections: Any) -> dict[str, Any]:
    model = folder / f"model-{kind}"
    if not model.exists():
        builders.tiny_model_folder(model, kind)
        builders.gsm8k_file(folder)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    made = builders.recipe_mapping(model, folder / "train.jsonl", **sections)
    made["adapter"] = {"method": "full"} if method == "full" else made["adapter"] | {"method": method, "target_modules": targets}
    made["train"] = made["train"] | {"steps": STEPS, "eval_every": 3} | sections.get("train", {})
    made["data"] = made["data"] | {"validation": {"fraction": 0.2}}
    return made


def weights(context: Any) -> dict[str, bytes]:
    """The bytes of the result's tensors."""
    folder = context.layout.adapter if context.layout.adapter.exists() else context.layout.full_model
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert found
    return found


def curve(context: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in context.layout.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def assert_same(context: Any, undisturbed: Any) -> None:
    assert weights(context) == weights(undisturbed)
    assert curve(context) == curve(undisturbed)


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, where: str = "training_step") -> None:
    """Die when `where` is called with `step` steps done."""
    original = getattr(RunTrainer, where)

    def deadly(self: RunTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return original(self, *arguments, **options)

    monkeypatch.setattr(RunTrainer, where, deadly)


# GPT-2 has dropout, so its resumed run also needs the random state.
@pytest.mark.parametrize(("method", "kind"), [("soka", "llama"), ("soka", "gpt2"), ("lora", "gpt2"), ("pissa", "llama"), ("full", "llama")])
def test_a_run_killed_in_the_middle_of_a_step_ends_bit_equal(
    method: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mapping(tmp_path, method, kind=kind)
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    context = builders.stage_context(tmp_path, made)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    assert train(context).status == "done"
    assert "Going on from checkpoint-2 of 6 steps." in context.reporter.messages
    assert_same(context, undisturbed)


def test_a_resumed_pissa_run_takes_its_start_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = builders.stage_context(tmp_path, mapping(tmp_path, "pissa"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("a second SVD, which another machine answers otherwise"))
    assert train(context).status == "done"


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mapping(tmp_path)
    context = builders.stage_context(tmp_path, made)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 4, "_save_rng_state")
        train(context)
    assert [path.name for path in context.layout.checkpoints.iterdir()] == ["checkpoint-2"]
    train(context)
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert_same(context, undisturbed)


def test_a_kill_between_the_last_checkpoint_and_the_result_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mapping(tmp_path)
    context = builders.stage_context(tmp_path, made)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("soka_cli.stages.train._Training._save", lambda self, model: (_ for _ in ()).throw(Killed()))
        train(context)
    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", lambda *_, **__: pytest.fail("a step was trained again"))
        train(context)
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert_same(context, undisturbed)


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth", "digests.json"])
def test_a_damaged_checkpoint_is_skipped_by_name(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mapping(tmp_path, train={"eval_every": 100})
    context = builders.stage_context(tmp_path, made)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        train(context)
    damaged = context.layout.checkpoints / "checkpoint-4" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    train(context)
    assert any(warning.startswith("checkpoint-4 is skipped") and file in warning for warning in context.reporter.warnings)
    assert "Going on from checkpoint-2 of 6 steps." in context.reporter.messages
    assert [row["step"] for row in curve(context)] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_without_its_digests_is_skipped_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = builders.stage_context(tmp_path, mapping(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    (context.layout.checkpoints / "checkpoint-2" / "digests.json").unlink()
    train(context)
    assert "checkpoint-2 is skipped: it is incomplete (digests.json is missing)." in context.reporter.warnings
    assert [row["step"] for row in curve(context)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changed", "words"),
    [("data", "other data"), ("base", "another base"), ("recipe", "another recipe"), ("all", "another recipe, other data, another base")],
)
def test_a_checkpoint_of_another_run_is_skipped_by_name(changed: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put there by hand, whole as it is; this run has taken the same steps so far."""
    made = mapping(tmp_path)
    other = {name: dict(part) if isinstance(part, dict) else part for name, part in made.items()}
    if changed in ("data", "all"):
        rows = builders.gsm8k_rows(24)[::-1]
        other["data"]["train"] = made["data"]["train"] | {"path": str(builders.write_jsonl(tmp_path / "other.jsonl", rows))}
    if changed in ("base", "all"):
        other["model"]["name"] = str(builders.tiny_model_folder(tmp_path / "other", seed=1))
    if changed in ("recipe", "all"):
        other["train"]["lr"] = 2e-2
    train(foreign := builders.stage_context(tmp_path, other, run="foreign"))
    context = builders.stage_context(tmp_path, made)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 4)
        train(context)
    shutil.rmtree(context.layout.checkpoints / "checkpoint-4")
    shutil.copytree(foreign.layout.checkpoints / "checkpoint-4", context.layout.checkpoints / "checkpoint-4")
    train(context)
    assert f"checkpoint-4 is skipped: it is of {words}." in context.reporter.warnings
    assert "Going on from checkpoint-2 of 6 steps." in context.reporter.messages
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert_same(context, undisturbed)


def test_a_checkpoint_of_a_version_that_did_not_say_whose_it_is_is_skipped_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = builders.stage_context(tmp_path, mapping(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    digests = context.layout.checkpoints / "checkpoint-2" / "digests.json"
    digests.write_text(json.dumps(json.loads(digests.read_text())["files"]))
    train(context)
    why = "digests.json does not say of which recipe, data and base it is (an earlier version wrote it)"
    assert f"checkpoint-2 is skipped: {why}." in context.reporter.warnings
    assert [row["step"] for row in curve(context)] == [1, 2, 3, 4, 5, 6]


def test_metrics_that_lack_the_checkpoints_step_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = builders.stage_context(tmp_path, mapping(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    context.layout.metrics.write_text('{"step": 1}\n')
    with pytest.raises(SokaError) as failure:
        train(context)
    assert failure.value.exit_code is ExitCode.RUN and "metrics.jsonl" in failure.value.where


class SignallingReporter(SilentReporter):
    """Sends a signal to this very process once so many steps are done."""

    def __init__(self, number: signal.Signals, after: int) -> None:
        super().__init__()
        self.number, self.left = number, after

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Any]:
        reporter = self

        class Task(SilentTask):
            def advance(self, amount: float = 1, **figures: float | str) -> None:
                if title.startswith("train"):
                    reporter.left -= 1
                    if reporter.left == 0:
                        reporter.send()

        yield Task()

    def send(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_run_at_a_steps_end_with_a_checkpoint(number: signal.Signals, kind: type[BaseException], tmp_path: Path) -> None:
    made = mapping(tmp_path, train={"save_every": 100})
    reporter = SignallingReporter(number, after=2)
    context = builders.stage_context(tmp_path, made, reporter=reporter, command="soka train -r mine.yaml")
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(context)
    assert stopped.type is kind
    assert reporter.warnings == ["Stopped at step 3 of 6; checkpoint-3 is written. Go on with: soka train -r mine.yaml"]
    assert not context.layout.adapter.exists()
    train(context)
    assert "Going on from checkpoint-3 of 6 steps." in reporter.messages
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert_same(context, undisturbed)


def test_a_signal_to_the_data_workers_too_leaves_the_step_its_batches(tmp_path: Path) -> None:
    """As a batch system, torchrun and a terminal send it: to every process."""
    made = mapping(tmp_path, train={"save_every": 100, "data_workers": 2, "batch_size": 4, "micro_batch_size": 1})

    class ToAll(SignallingReporter):
        def send(self) -> None:
            processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            subprocess.run(["kill", "-TERM", *map(str, processes)], check=True)

    reporter = ToAll(signal.SIGTERM, after=2)
    context = builders.stage_context(tmp_path, made, reporter=reporter)
    with pytest.raises(Interrupted):
        train(context)
    assert (context.layout.checkpoints / "checkpoint-3").is_dir()
    train(context)
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert_same(context, undisturbed)


def test_more_steps_go_on_from_where_the_shorter_run_ended(tmp_path: Path) -> None:
    made = mapping(tmp_path, train={"schedule": "constant"})
    short = made | {"train": made["train"] | {"steps": 4}}
    train(builders.stage_context(tmp_path, short))
    with pytest.raises(SokaError) as refusal:
        train(builders.stage_context(tmp_path, made | {"train": made["train"] | {"steps": 3}}))
    assert refusal.value.exit_code is ExitCode.RUN
    context = builders.stage_context(tmp_path, made)
    assert train(context).status == "done"
    assert "Going on from checkpoint-4 of 6 steps." in context.reporter.messages
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert weights(context) == weights(undisturbed)


def test_more_epochs_go_on_from_where_the_shorter_run_ended(tmp_path: Path) -> None:
    """The second pass has an order of its own, which a run of two epochs reads from the start."""
    made = mapping(tmp_path, train={"schedule": "constant"})
    once, twice = ({**made, "train": {**made["train"], "steps": None, "epochs": epochs}} for epochs in (1, 2))
    steps = train(builders.stage_context(tmp_path, once)).figures["steps"]
    context = builders.stage_context(tmp_path, twice)
    assert train(context).figures["steps"] == 2 * steps
    assert f"Going on from checkpoint-{steps} of {2 * steps} steps." in context.reporter.messages
    undisturbed = builders.stage_context(tmp_path, twice, run="undisturbed")
    train(undisturbed)
    assert weights(context) == weights(undisturbed)
    with pytest.raises(SokaError) as refusal:
        train(builders.stage_context(tmp_path, once))
    assert refusal.value.exit_code is ExitCode.RUN and "epochs" in refusal.value.why


def test_an_extended_run_takes_its_rates_from_the_longer_schedule(tmp_path: Path) -> None:
    made = mapping(tmp_path, train={"schedule": "linear", "steps": 8})
    train(builders.stage_context(tmp_path, made | {"train": made["train"] | {"steps": 4}}))
    context = builders.stage_context(tmp_path, made)
    train(context)
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    assert [row["lr"] for row in curve(context)][4:] == [row["lr"] for row in curve(undisturbed)][4:]


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    context = builders.stage_context(tmp_path, mapping(tmp_path, train={"save_every": 1, "keep_checkpoints": 2}))
    train(context)
    assert sorted(path.name for path in context.layout.checkpoints.iterdir()) == ["checkpoint-5", "checkpoint-6"]


def test_speed_options_may_change_between_interruption_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mapping(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(builders.stage_context(tmp_path, made))
    faster = made | {"train": made["train"] | {"micro_batch_size": 4, "save_every": 3, "log_every": 2}}
    context = builders.stage_context(tmp_path, faster)
    train(context)
    undisturbed = builders.stage_context(tmp_path, made, run="undisturbed")
    train(undisturbed)
    last, wanted = curve(context)[-1], curve(undisturbed)[-1]
    assert [row["step"] for row in curve(context)] == [1, 2, 3, 4, 6]
    assert last["tokens"] == wanted["tokens"]
    assert last["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-5)
