"""Two trained tiny runs side by side; each test changes a copy of one of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from soka_cli.cli.app import main
from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.manifest import Manifest
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.compare import compare
from soka_cli.stages.comparison import undominated
from soka_cli.stages.contestant import value_at
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.train import train
from tests.stages.pipeline import context_for, recipe_folder

LORA = "adapter={method: lora, target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 1}}"
COMMON = ("train.eval_every=2", "train.save_every=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """runs/soka and runs/lora, trained for four steps and asked five problems; copy before changing."""
    folder = recipe_folder(tmp_path_factory.mktemp("compare"), llama_folder, data={"validation": {"fraction": 0.2}})
    for name, overrides in (("soka", ()), ("lora", (LORA,))):
        context = context_for(folder, *COMMON, *overrides, run=f"runs/{name}")
        train(context)
        evaluate(context, ["adapter"])
    evaluate(context, ["base"])
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of copies to change; the current folder holds it."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def change_inputs(run: Path, change: Any) -> None:
    """Rewrite what the manifest says that train was given."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["stages"]["train"]["inputs"])
    path.write_text(json.dumps(manifest))
    Manifest.read(path)


def rewrite_scores(run: Path, change: Any) -> None:
    path = run / "eval/gsm8k-plain-adapter/scores.json"
    scores = json.loads(path.read_text())
    change(scores)
    path.write_text(json.dumps(scores))


def compared(*roots: Path, **options: Any) -> dict[str, Any]:
    return compare(list(roots), reporter=SilentReporter(), **options).figures


def by_name(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in figures["runs"]}


def test_each_run_has_its_own_parameters_losses_scores_time_and_memory(runs: Path) -> None:
    found = by_name(compared(runs / "soka", runs / "lora"))
    for name, run in found.items():
        kept = json.loads((runs / name / "env/train.json").read_text())["training"]
        assert (run["parameters"], run["steps"], run["tokens"]) == (kept["trainable_parameters"], kept["steps"], kept["tokens"])
        assert run["loss_at_equal_steps"] == kept["last_eval_loss"]
        assert run["seconds"] > 0 and run["memory_bytes"] > 0
        assert run["best_loss"] == min(loss for _, loss in run["curve"])


def test_a_run_against_its_own_copy_shows_no_difference(runs: Path) -> None:
    shutil.copytree(runs / "soka", runs / "again")
    figures = compared(runs / "soka", runs / "again")
    one, other = figures["runs"]
    kept = ("parameters", "best_loss", "loss_at_equal_steps", "loss_at_equal_tokens", "scores", "curve")
    assert [one[key] for key in kept] == [other[key] for key in kept]
    assert all((pair["better"], pair["worse"], pair["p"]) == (0, 0, 1.0) for pair in figures["pairs"]) and figures["pairs"]
    assert figures["fronts"]["loss"] == ["soka", "again"]


def test_the_paired_test_counts_the_items_that_one_alone_has_right(runs: Path) -> None:
    for name, right in (("soka", (1, 1, 0, 0, 0)), ("lora", (0, 1, 1, 1, 1))):
        path = runs / name / "eval/gsm8k-plain-adapter/predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row, verdict in zip(rows, right, strict=True):
            row["correct"] = dict.fromkeys(row["correct"], bool(verdict))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = compared(runs / "soka", runs / "lora")["pairs"][0]
    assert (pair["items"], pair["better"], pair["worse"], pair["p"]) == (5, 1, 3, 0.625)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda inputs: inputs["data"].update(max_length=99), "data.max_length: 256 -> 99"),
        (lambda inputs: inputs["data"]["train"].update(sha256="0" * 64), "data.train.sha256"),
        (lambda inputs: inputs.update(base="f" * 64), "different base models"),
    ],
)
def test_other_data_or_another_base_is_refused_with_the_difference_and_marked_on_request(runs: Path, change: Any, named: str) -> None:
    change_inputs(runs / "lora", change)
    with pytest.raises(SokaError) as caught:
        compared(runs / "soka", runs / "lora")
    assert caught.value.exit_code == ExitCode.USAGE
    assert named in caught.value.why and "--unfair" in caught.value.hint
    assert any(named in mark for mark in compared(runs / "soka", runs / "lora", unfair=True)["marks"])


def test_the_learning_rate_is_each_method_s_own_and_the_rest_of_the_training_is_marked(runs: Path) -> None:
    change_inputs(runs / "lora", lambda inputs: inputs["train"].update(lr=0.5, batch_size=8))
    marks = "\n".join(compared(runs / "soka", runs / "lora")["marks"])
    assert "train.batch_size: 4 -> 8" in marks and "train.lr" not in marks


def test_single_rates_and_single_seeds_are_marked(runs: Path) -> None:
    marks = "\n".join(compared(runs / "soka", runs / "lora")["marks"])
    assert "one learning rate" in marks and "one seed" in marks


def test_two_protocols_never_share_a_column(runs: Path) -> None:
    rewrite_scores(runs / "lora", lambda scores: scores.update(protocol="lm-eval", protocol_sha256="1" * 64))
    figures = compared(runs / "soka", runs / "lora")
    for column in figures["columns"]:
        filled = [name for name, run in by_name(figures).items() if run["scores"][column["label"]] is not None]
        assert len(filled) == 1
    assert not figures["pairs"]
    assert any("different ways" in mark and "lm-eval" in mark for mark in figures["marks"])


def test_one_protocol_with_other_words_gets_a_column_of_its_own(runs: Path) -> None:
    rewrite_scores(runs / "lora", lambda scores: scores.update(template_sha256="1" * 64))
    labels = [column["label"] for column in compared(runs / "soka", runs / "lora")["columns"]]
    assert len(labels) == len(set(labels)) == 6


def test_the_base_stands_beside_the_runs_where_one_of_them_asked_it(runs: Path) -> None:
    outcome = compare([runs / "soka", runs / "lora"])
    assert [row[0] for row in outcome.tables[1].rows] == ["base", "soka", "lora"]


def test_losses_are_compared_as_far_as_the_shorter_run_came(runs: Path) -> None:
    path = runs / "lora/train/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    figures = compared(runs / "soka", runs / "lora")
    longer = by_name(figures)["soka"]
    assert figures["equal_steps"] == 2
    assert longer["loss_at_equal_steps"] == dict(map(tuple, longer["curve"]))[2]
    assert longer["loss_at_equal_steps"] == longer["loss_at_equal_tokens"]  # the same rows in the same order


def test_without_held_out_rows_the_training_loss_is_compared_and_called_so(runs: Path) -> None:
    for name in ("soka", "lora"):
        path = runs / name / "train/metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if not key.startswith("eval_loss")} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    outcome = compare([runs / "soka", runs / "lora"])
    assert "training loss" in outcome.figures["loss"] and "best training loss" in outcome.tables[0].columns
    assert by_name(outcome.figures)["soka"]["curve"][-1][1] == pytest.approx(sum(row["loss"] for row in kept) / 4, abs=0.5)


def test_runs_of_one_name_are_told_apart_by_their_paths(runs: Path) -> None:
    shutil.copytree(runs / "soka", "elsewhere/soka")
    assert set(by_name(compared(runs / "soka", Path("elsewhere/soka")))) == {"runs/soka", "elsewhere/soka"}


def test_the_page_is_one_file_without_a_network_and_has_its_twins(runs: Path) -> None:
    page = Path(compared(runs / "soka", runs / "lora")["page"])
    text = page.read_text()
    assert text.count("<svg") >= 4 and 'data-plot="loss-steps"' in text and 'data-plot="front-score"' in text
    assert "<script" not in text and "src=" not in text and "url(http" not in text
    assert all(name in page.with_suffix(".md").read_text() for name in ("soka", "lora", "McNemar"))
    written = json.loads(page.with_suffix(".json").read_text())
    assert {"runs", "pairs", "columns", "marks", "fronts"} <= written.keys()
    assert sorted(path.stem for path in (page.parent / "plots").iterdir()) == sorted(
        part.split('"')[0] for part in text.split('data-plot="')[1:]
    )


def test_a_name_is_text_in_the_page_and_not_markup(runs: Path) -> None:
    (runs / "soka").rename(runs / "<b>&so$ka$")
    text = Path(compared(runs / "<b>&so$ka$", runs / "lora")["page"]).read_text()
    assert "<b>&so" not in text and "&lt;b&gt;&amp;so" in text


def test_a_folder_that_holds_something_else_is_not_replaced(runs: Path) -> None:
    with pytest.raises(SokaError) as caught:
        compared(runs / "soka", runs / "lora", out=runs)
    assert caught.value.exit_code == ExitCode.RUN and (runs / "soka").is_dir()


def test_comparing_again_replaces_the_page(runs: Path) -> None:
    compared(runs / "soka", runs / "lora", out=Path("page"))
    (Path("page") / "plots/old.svg").write_text("x")
    compared(runs / "soka", runs / "lora", out=Path("page"))
    assert not (Path("page") / "plots/old.svg").exists()


def test_a_run_that_was_not_trained_is_exit_5_with_the_command(runs: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/soka", "runs", "--json"]) == ExitCode.RUN
    shutil.rmtree(runs / "lora/train")
    assert main(["compare", "runs/soka", "runs/lora", "--json"]) == ExitCode.RUN
    assert "soka train --run" in capsys.readouterr().out


def test_what_lies_beside_a_sweep_s_runs_is_left_out_of_a_comparison_and_that_is_said(runs: Path) -> None:
    (runs / "sweep.json").write_text(json.dumps({"schema_version": 1, "runs": [], "best": {}}))
    for name in ("logs", "report"):
        (runs / name).mkdir()
    reporter = SilentReporter()
    figures = compare(sorted(runs.iterdir()), reporter=reporter).figures
    assert [run["name"] for run in figures["runs"]] == ["lora", "soka"]
    assert reporter.warnings[0] == "left out, no run: runs/logs, runs/report, runs/sweep.json"


def test_one_run_is_no_comparison(runs: Path) -> None:
    with pytest.raises(SokaError) as caught:
        compared(runs / "soka", runs / "soka/")
    assert caught.value.exit_code == ExitCode.USAGE


def test_no_run_on_the_front_is_surpassed_and_every_other_is() -> None:
    sizes = {"a": 10, "b": 20, "c": 20, "d": 5, "e": 10}
    goodness = {"a": 0.5, "b": 0.5, "c": 0.9, "d": 0.1, "e": 0.5}
    assert undominated(sizes, goodness) == ("a", "c", "d", "e")


def test_a_value_between_two_readings_lies_on_their_line_and_none_outside() -> None:
    points = [(0.0, 4.0), (10.0, 2.0), (20.0, 1.0)]
    assert [value_at(points, place) for place in (0, 5, 10, 15, 20)] == [4.0, 3.0, 2.0, 1.5, 1.0]
    assert value_at(points, 21) is None and value_at([], 1) is None
