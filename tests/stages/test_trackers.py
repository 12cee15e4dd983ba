"""Trackers mirror metrics.jsonl; whatever they do, the run and its file stay as they are."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages import trackers
from soka_cli.stages.train import train
from soka_cli.stages.trainer import RunTrainer
from tests import builders


class Recorder:
    """A tracker that keeps what it is told, and raises where it is asked to."""

    sessions: ClassVar[list["Recorder"]] = []

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.finished = False
        Recorder.sessions.append(self)

    def _maybe_fail(self, where: str) -> None:
        if where == self.failing:
            raise ConnectionError(f"no network in {where}")

    def start(self) -> None:
        self._maybe_fail("start")

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._maybe_fail("log")
        assert step is not None
        self.rows.append((step, values))

    def finish(self) -> None:
        self._maybe_fail("finish")
        self.finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a Recorder in wandb's place; gives a function that chooses where it fails."""
    Recorder.sessions = []
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())

    def failing(where: str = "") -> None:
        monkeypatch.setitem(trackers.OPENERS, "wandb", lambda run, folder, offline: Recorder(where))

    failing()
    return failing


def context_of(folder: Path, model: Path, run: str = "run", **options: Any) -> Any:
    mapping = builders.recipe_mapping(model, builders.gsm8k_file(folder), train={"trackers": ["wandb"]} | options)
    return builders.stage_context(folder, mapping, run=run)


def rows_of(context: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in context.layout.metrics.read_text().splitlines()]


def mirrored(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    return [(row["step"], {name: value for name, value in row.items() if name != "step"}) for row in rows]


def test_a_tracker_is_told_the_numbers_of_metrics_jsonl(recorder: Any, tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder)
    train(context)
    (session,) = Recorder.sessions
    assert session.rows == mirrored(rows_of(context)) and len(session.rows) == 4
    assert session.finished


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_raises_never_stops_a_run(where: str, recorder: Any, tmp_path: Path, llama_folder: Path) -> None:
    recorder(where)
    context = context_of(tmp_path, llama_folder)
    assert train(context).status == "done"
    assert [row["step"] for row in rows_of(context)] == [1, 2, 3, 4]
    told = [warning for warning in context.reporter.warnings if "Tracker wandb failed and is left out" in warning]
    assert len(told) == 1 and f"ConnectionError: no network in {where}" in told[0]


def test_a_resumed_session_shows_the_whole_curve_without_gaps_or_repeats(
    recorder: Any, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL."""

    def deadly(self: RunTrainer, *arguments: Any, original: Any = RunTrainer.training_step, **options: Any) -> Any:
        if self.state.global_step == 3:
            raise Killed
        return original(self, *arguments, **options)

    context = context_of(tmp_path, llama_folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunTrainer, "training_step", deadly)
        train(context)
    train(context)
    first, second = Recorder.sessions
    assert [step for step, _ in first.rows] == [1, 2, 3]  # step 3 came after the checkpoint, and is taken back
    assert second.rows == mirrored(rows_of(context))


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_tracker_without_its_package_is_an_error_at_the_start(
    name: str, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    context = context_of(tmp_path, llama_folder, trackers=[name])
    with pytest.raises(SokaError) as caught:
        train(context)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert name in caught.value.what and "soka-cli[trackers]" in caught.value.hint
    assert not context.layout.root.exists()


def test_every_tracker_of_the_schema_has_an_opener_and_a_package() -> None:
    from typing import get_args

    from soka_cli.recipe.schema import TrainSection

    names = set(get_args(get_args(TrainSection.model_fields["trackers"].annotation)[0]))
    assert names == set(trackers.OPENERS) == set(trackers.PACKAGES)


def test_tensorboard_holds_the_numbers_of_metrics_jsonl(tmp_path: Path, llama_folder: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    context = context_of(tmp_path, llama_folder, trackers=["tensorboard"], steps=2)
    train(context)
    assert not context.reporter.warnings
    found = accumulators.EventAccumulator(str(context.layout.trackers / "tensorboard" / "run"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows_of(context)
    ]
