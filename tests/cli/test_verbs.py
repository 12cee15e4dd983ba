"""Every verb through the command line, and every exit code that a user can meet."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from soka_cli.cli.app import main
from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox import find_isolation
from soka_cli.stages.outcome import Outcome
from tests import builders

QUESTION = "Question: Ann has 3 pens and buys 2 more. How many pens has she?\nAnswer:"


@pytest.fixture
def here(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recipe, its finished run, and the note which run was used last."""
    (copied / "runs" / ".last").write_text("runs/tiny\n", encoding="utf8")
    monkeypatch.chdir(copied)
    return copied


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON object that stands alone on stdout."""
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("verb", ["decompose", "train", "eval", "merge", "report", "run"])
def test_a_verb_whose_work_is_done_says_so_and_exits_0(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--recipe", "tiny.yaml", "--json"]) == ExitCode.DONE
    said = json_of(capsys)
    assert (said["status"], said["run"]) == ("already done", "runs/tiny")


@pytest.mark.parametrize("verb", ["eval", "merge", "report", "run", "plan"])
def test_without_options_the_run_used_last_is_meant(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--json"]) == ExitCode.DONE
    assert json_of(capsys)["run"] == "runs/tiny"


@pytest.mark.parametrize("verb", ["decompose", "train", "eval", "merge", "report"])
def test_a_run_directory_alone_knows_its_recipe(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("runs/tiny", "moved")
    assert main([verb, "--run", "moved", "--json"]) == ExitCode.DONE
    assert json_of(capsys)["status"] == "already done"


def test_plan_prints_and_writes_the_same_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-r", "tiny.yaml", "--json"]) == ExitCode.DONE
    said = json_of(capsys)
    written = json.loads((here / "runs/tiny/plan.json").read_text())
    assert {key: said[key] for key in written} == written


def test_generate_answers_with_base_and_adapter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", QUESTION, "--max-new-tokens", "4", "--json"]) == ExitCode.DONE
    assert {"base", "adapter"} <= set(json.dumps(json_of(capsys)).replace('"', " ").split())


def test_score_judges_lines_without_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builders.write_jsonl(
        here / "lines.jsonl", [{"id": "a", "completion": "#### 5", "gold": "5"}, {"id": "b", "completion": "#### 6", "gold": "5"}]
    )
    assert main(["score", "--task", "gsm8k", "lines.jsonl", "--json"]) == ExitCode.DONE
    assert json_of(capsys)["metrics"]["strict"]["value"] == 0.5


def test_score_runs_programs_and_gives_pass_at_k(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_isolation().layer is None:
        pytest.skip("nothing isolates programs here")
    codes = ("def f(x):\n    return x + 1", "def f(x):\n    return x")
    builders.write_jsonl(here / "lines.jsonl", [{"id": "a", "completion": code, "test_list": ["assert f(1) == 2"]} for code in codes])
    words = ["score", "--task", "mbpp", "--pass-at", "2", "--protocol", "plain", "--unsafe-execution", "lines.jsonl", "--json"]
    assert main(words) == ExitCode.DONE
    said = json_of(capsys)
    assert {name: one["value"] for name, one in said["metrics"].items()} == {"pass@1": 0.5, "pass@2": 1.0}
    assert said["execution"]["unsafe"] is False


def test_doctor_answers_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == ExitCode.DONE
    json_of(capsys)


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "show", "demo"]])
def test_recipes_lists_and_shows(here: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.DONE
    assert "demo" in capsys.readouterr().out


def test_clean_asks_before_it_removes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = here / "runs/tiny/.old/merge-20260101T000000Z"
    aside.mkdir(parents=True)
    (aside / "file").write_text("x")
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert main(["clean"]) == ExitCode.DONE and aside.exists()
    assert main(["clean", "--yes"]) == ExitCode.DONE and not aside.exists()


FAILURES = {
    "a recipe that is nowhere": (["train", "-r", "nowhere.yaml"], ExitCode.USAGE),
    "an unknown key": (["plan", "-r", "tiny.yaml", "train.learning_rate=1"], ExitCode.USAGE),
    "rows of another benchmark": (["eval", "-r", "tiny.yaml", "eval.0.task=math", "--run", "fresh"], ExitCode.DATA),
    "an unknown task to score": (["score", "--task", "gsm9k", "tiny.yaml"], ExitCode.USAGE),
    "a gated model offline": (["decompose", "-r", "gsm8k.yaml", "--offline"], ExitCode.ENVIRONMENT),
    "a device that is not there": (["train", "-r", "tiny.yaml", "--run", "fresh", "--device", "cuda:7"], ExitCode.ENVIRONMENT),
    "a missing data file": (["train", "-r", "tiny.yaml", "--run", "fresh", "data.train.path=gone.jsonl"], ExitCode.DATA),
    "a missing completions file": (["score", "--task", "gsm8k", "gone.jsonl"], ExitCode.DATA),
    "changed inputs": (["train", "-r", "tiny.yaml", "train.lr=0.5"], ExitCode.RUN),
    "a folder that is no run": (["report", "--run", "."], ExitCode.RUN),
    "merging before training": (["merge", "-r", "tiny.yaml", "--run", "fresh"], ExitCode.RUN),
    "rows without a supervised token": (["train", "-r", "tiny.yaml", "--run", "fresh", "data.max_length=2"], ExitCode.TRAINING),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_exits_with_its_code_and_says_what_to_try(here: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, code = FAILURES[case]
    assert main([*words, "--json"]) == code
    error = json_of(capsys)["error"]
    assert error["exit_code"] == code and error["what"] and error["try"]


def test_a_failure_is_shown_in_its_four_parts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-r", "tiny.yaml", "train.lr=0.5"]) == ExitCode.RUN
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split()[0] for line in shown.err.splitlines() if line and line[0] != " "] == ["error", "where", "why", "try"]


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (SokaError("x", hint="y", exit_code=ExitCode.CHECK), ExitCode.CHECK),
        (MemoryError(), ExitCode.RESOURCES),
        (OSError(28, "No space left on device"), ExitCode.RESOURCES),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (ZeroDivisionError("hf_secret"), ExitCode.BUG),
    ],
)
def test_whatever_a_stage_raises_becomes_an_exit_code(
    here: Path, raised: BaseException, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Outcome:
        raise raised

    monkeypatch.setattr("soka_cli.stages.report.report", fail)
    monkeypatch.setattr("tempfile.tempdir", str(here))
    assert main(["report"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_leaves_its_traceback_in_a_file_without_local_variables(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Outcome:
        token = "hf_" + "abcdefgh"
        raise ZeroDivisionError(len(token))

    monkeypatch.setattr("soka_cli.stages.report.report", fail)
    monkeypatch.setattr("tempfile.tempdir", str(here))
    assert main(["report", "--json"]) == ExitCode.BUG
    text = Path(json_of(capsys)["error"]["where"].removeprefix("traceback in ")).read_text()
    assert "ZeroDivisionError" in text and "hf_abcdefgh" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_training_leaves_a_checkpoint_and_its_exit_code(here: Path, number: signal.Signals, code: int) -> None:
    words = ["train", "-r", "tiny.yaml", "--run", "long", "train.steps=5000", "train.save_every=5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "soka_cli", *words], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    metrics = here / "long/train/metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    _, shown = process.communicate(timeout=300)
    assert process.returncode == code, shown
    assert list((here / "long/train/checkpoints").glob("checkpoint-*/digests.json"))
    assert "soka train -r tiny.yaml --run long" in shown


@pytest.mark.parametrize(
    ("words", "code"), [(["plan", "-r", "nowhere.yaml"], 2), (["report", "--run", "."], 5), (["recipes", "--json"], 0)]
)
def test_the_process_exits_with_what_the_verb_answered(words: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "soka_cli", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
