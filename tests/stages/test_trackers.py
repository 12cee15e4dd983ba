"""Trackers mirror metrics.jsonl; whatever they do, the run and its file stay as they are."""

import json
import os
import subprocess
import sys
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


def test_the_norms_of_modules_are_told_by_their_names(recorder: Any, tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder, log_module_norms=True, steps=2)
    train(context)
    (session,) = Recorder.sessions
    for (_, told), row in zip(session.rows, rows_of(context), strict=True):
        norms = {name: value for name, value in told.items() if name.startswith("module_grad_norms/")}
        assert norms == {f"module_grad_norms/{module}": norm for module, norm in row["module_grad_norms"].items()}
        assert len(norms) == 4


def test_what_a_tracker_prints_is_no_result(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recorder: Any
) -> None:
    class Talker(Recorder):
        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            print("* logged")

        start = finish = lambda self: print("* hello")  # type: ignore[assignment]

    monkeypatch.setitem(trackers.OPENERS, "wandb", lambda run, folder, offline: Talker())
    train(context_of(tmp_path, llama_folder, steps=1))
    told = capsys.readouterr()
    assert "* " not in told.out and told.err.count("* ") == 3


ELSEWHERE = [
    ("trackio", "TRACKIO_SPACE_ID", "somebody/some-space"),
    ("trackio", "TRACKIO_SERVER_URL", "https://trackio.example"),
    ("trackio", "TRACKIO_BUCKET_ID", "somebody/some-bucket"),
    ("mlflow", "MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example"),
    ("mlflow", "MLFLOW_TRACKING_URI", "databricks"),
]


@pytest.mark.parametrize(("name", "variable", "value"), ELSEWHERE)
def test_offline_leaves_out_a_tracker_that_sends_elsewhere_and_says_so(
    name: str, variable: str, value: str, recorder: Any, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.OPENERS, name, lambda run, folder, offline: pytest.fail("it was opened"))
    monkeypatch.setenv(variable, value)
    mapping = builders.recipe_mapping(llama_folder, builders.gsm8k_file(tmp_path), train={"trackers": [name], "steps": 1})
    context = builders.stage_context(tmp_path, mapping, offline=True)
    assert train(context).status == "done"
    (warning,) = context.reporter.warnings
    assert warning == f"Tracker {name} is left out: {variable} has it send elsewhere, and --offline sends nothing."


@pytest.mark.parametrize(("name", "value"), [("trackio", ""), ("mlflow", ""), ("mlflow", "sqlite:///runs.db"), ("mlflow", "./mlruns")])
def test_offline_keeps_a_tracker_that_writes_here(
    name: str, value: str, recorder: Any, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.OPENERS, name, lambda run, folder, offline: Recorder())
    for variable in trackers.SERVERS[name]:
        monkeypatch.setenv(variable, value)
    mapping = builders.recipe_mapping(llama_folder, builders.gsm8k_file(tmp_path), train={"trackers": [name], "steps": 1})
    train(builders.stage_context(tmp_path, mapping, offline=True))
    assert [len(session.rows) for session in Recorder.sessions] == [1]


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


# ---- the packages themselves, where they are installed: nothing is sent


def test_wandb_keeps_the_numbers_of_metrics_jsonl_for_later(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = {"trackers": ["wandb"], "log_module_norms": True}
    mapping = builders.recipe_mapping(llama_folder, builders.gsm8k_file(tmp_path), train=options)
    context = builders.stage_context(tmp_path, mapping, offline=True)
    train(context)
    assert not context.reporter.warnings
    (file,) = context.layout.trackers.rglob("offline-run-*/*.wandb")
    kept = file.read_bytes()  # values lie in it as JSON
    for told in told_of(context):
        assert [name for name in told if name.encode() not in kept] == []
        assert [name for name in ("loss", "grad_norm", "lr") if json.dumps(told[name]).encode() not in kept] == []


def told_of(context: Any) -> list[dict[str, Any]]:
    return [trackers.numbers(row) for row in rows_of(context)]


def test_mlflow_holds_the_numbers_of_metrics_jsonl(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    context = context_of(tmp_path, llama_folder, trackers=["mlflow"], log_module_norms=True)
    train(context)
    assert not context.reporter.warnings
    client = mlflow.tracking.MlflowClient((context.layout.trackers / "mlflow").absolute().as_uri())
    (experiment,) = client.search_experiments(filter_string=f"name = '{trackers.PROJECT}'")
    (run,) = client.search_runs([experiment.experiment_id])
    rows = rows_of(context)
    for name in told_of(context)[0]:
        history = client.get_metric_history(run.info.run_id, name)
        assert [(one.step, one.value) for one in history] == [
            (row["step"], pytest.approx(told[name])) for row, told in zip(rows, told_of(context), strict=True)
        ]


TRACKIO = """
import json, sys
from pathlib import Path
import yaml
from tests import conftest, builders
from soka_cli.stages.train import train
folder = Path(sys.argv[1])
context = builders.stage_context(folder, yaml.safe_load((folder / "made.yaml").read_text()), offline=True)
train(context)
assert not context.reporter.warnings, context.reporter.warnings
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("soka")
Path(folder / "found.json").write_text(json.dumps(SQLiteStorage.get_logs("soka", run), default=str))
"""


def test_trackio_holds_the_numbers_of_metrics_jsonl(tmp_path: Path, llama_folder: Path) -> None:
    """In a process of its own: trackio takes its folder from the environment when it is imported."""
    pytest.importorskip("trackio")
    options = {"trackers": ["trackio"], "log_module_norms": True}
    builders.write_recipe(tmp_path / "made.yaml", builders.recipe_mapping(llama_folder, builders.gsm8k_file(tmp_path), train=options))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")}
    folders = {"TRACKIO_DIR": tmp_path / "trackio", "HF_HOME": tmp_path / "hub", "PYTHONPATH": builders.REPOSITORY}
    environment = kept | {name: str(folder) for name, folder in folders.items()}
    done = subprocess.run([sys.executable, "-c", TRACKIO, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    for told, row in zip(json.loads((tmp_path / "found.json").read_text()), rows, strict=True):
        assert told["step"] == row["step"]
        wanted = trackers.numbers(row)
        assert {name: told[name] for name in wanted} == pytest.approx(wanted)
