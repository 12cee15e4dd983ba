"""The whole pipeline on a tiny model, in process."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest
from soka_cli.sandbox.isolation import Isolation
from soka_cli.stages import execution
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.run import generate_command, run
from tests import builders
from tests.stages.pipeline import context_for, recipe_folder

STAGES = [
    "decompose",
    "train",
    "eval/gsm8k-plain-base",
    "contamination",
    "eval/gsm8k-plain-adapter",
    "merge",
    "eval/gsm8k-plain-merged",
    "report",
]


def written(root: Path) -> dict[str, int]:
    """When each file of a run was last written; the lock is not a result."""
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def test_every_stage_is_done_in_the_contracts_order(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    manifest = Manifest.read(RunLayout(folder / "runs/tiny").manifest)
    assert list(manifest.stages) == STAGES
    assert {record.status for record in manifest.stages.values()} == {"done"}
    assert outcome.status == "done"


def test_the_scores_stand_side_by_side_as_the_files_have_them(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    layout = RunLayout(folder / "runs/tiny")
    table = outcome.tables[0]
    assert table.columns == ("benchmark", "metric", "base", "adapter", "merged")
    assert [row[:2] for row in table.rows] == [("gsm8k-plain", metric) for metric in ("strict", "flexible", "numeric")]
    for row in table.rows:
        for kind, cell in zip(("base", "adapter", "merged"), row[2:], strict=True):
            metric = json.loads(layout.scores("gsm8k-plain", kind).read_text())["metrics"][row[1]]
            assert cell == f"{metric['value']:.3f} +- {metric['stderr']:.3f}"
    assert [one["model"] for one in outcome.figures["scores"]] == ["base", "adapter", "merged"]
    assert Path(outcome.figures["report"]).is_file()
    json.dumps(outcome.figures, allow_nan=False)


def test_a_second_run_says_so_and_rewrites_nothing(finished: tuple[Path, Outcome]) -> None:
    folder, first = finished
    before = written(folder / "runs")
    again = run(context_for(folder))
    assert again.status == "already done"
    assert {one["status"] for one in again.figures["stages"]} == {"already done"}
    assert again.tables == first.tables
    assert written(folder / "runs") == before


def test_more_steps_train_on_and_judge_the_new_adapter_while_the_base_stays_judged(copied: Path) -> None:
    layout = RunLayout(copied / "runs/tiny")
    base = written(layout.evaluation("gsm8k-plain", "base"))
    old = (layout.adapter / "adapter_model.safetensors").read_bytes()
    outcome = run(context_for(copied, "train.steps=6"))
    assert outcome.figures["training"]["steps"] == 6
    assert (layout.adapter / "adapter_model.safetensors").read_bytes() != old
    assert written(layout.evaluation("gsm8k-plain", "base")) == base
    assert {path.name.rpartition("-2")[0] for path in layout.set_aside.iterdir()} == {
        "eval-gsm8k-plain-adapter",
        "eval-gsm8k-plain-merged",
        "merge",
    }


def test_a_changed_recipe_is_refused_with_the_difference(copied: Path) -> None:
    before = written(copied / "runs")
    with pytest.raises(SokaError) as caught:
        run(context_for(copied, "train.lr=0.5"))
    assert caught.value.exit_code == ExitCode.RUN
    assert caught.value.why == "train.lr: 0.01 -> 0.5"
    assert written(copied / "runs") == before


def test_a_run_that_stopped_late_goes_on_where_it_stopped(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*arguments: Any, **options: Any) -> Outcome:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("soka_cli.stages.merge.merge", fail)
        with pytest.raises(KeyboardInterrupt):
            run(context_for(copied, "train.steps=6"))
    kept = written(copied / "runs/tiny/train")
    outcome = run(context_for(copied, "train.steps=6"))
    done = {one["stage"]: one["status"] for one in outcome.figures["stages"]}
    assert (done["decompose"], done["train"], done["merge"]) == ("already done", "already done", "done")
    assert written(copied / "runs/tiny/train") == kept


def test_a_missing_benchmark_shows_before_anything_is_computed(tmp_path: Path, llama_folder: Path) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    with pytest.raises(SokaError) as caught:
        run(context_for(folder, f"eval.0.path={tmp_path / 'gone.jsonl'}"))
    assert caught.value.exit_code == ExitCode.DATA
    assert not (folder / "runs/tiny").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_another_method_runs_through_the_same_stages(tmp_path: Path, llama_folder: Path, method: str) -> None:
    adapter = (
        {"method": "lora", "target_modules": ["q_proj"], "rank": {"rule": "fixed", "value": 2}} if method == "lora" else {"method": "full"}
    )
    folder = recipe_folder(tmp_path, llama_folder)
    mapping = builders.recipe_mapping(llama_folder, folder / "train.jsonl")
    mapping = {**mapping, "adapter": adapter, "eval": [{"task": "gsm8k", "path": str(folder / "test.jsonl"), "max_new_tokens": 4}]}
    builders.write_recipe(folder / "tiny.yaml", mapping)
    outcome = run(context_for(folder))
    kinds = [one["model"] for one in outcome.figures["scores"]]
    assert kinds == (["base", "adapter", "merged"] if method == "lora" else ["base", "adapter"])
    assert not (folder / "runs/tiny/decompose").exists()


def test_a_recipe_without_benchmarks_runs_and_says_that_nothing_was_scored(copied: Path) -> None:
    outcome = run(context_for(copied, "eval=[]"))
    assert outcome.tables == () and any("nothing was scored" in note for note in outcome.notes)
    assert [one["stage"] for one in outcome.figures["stages"]] == ["decompose", "train", "merge", "report"]


def test_programs_that_nothing_isolates_stop_a_run_before_its_training(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "find_isolation", lambda: Isolation(None, {}, ()))
    test = builders.write_jsonl(tmp_path / "mbpp.jsonl", builders.mbpp_rows(2))
    folder = recipe_folder(tmp_path, llama_folder, eval=[{"task": "mbpp", "path": str(test), "split": "all"}])
    with pytest.raises(SokaError) as caught:
        run(context_for(folder))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert not (folder / "runs/tiny").exists()


def test_the_suggested_prompt_survives_a_shell(tmp_path: Path, finished: tuple[Path, Outcome]) -> None:
    prompt = 'Question: Ann\'s \\ 3 "pens" $HOME?\nAnswer:'
    command = generate_command(context_for(finished[0]), prompt)
    script = command.replace("soka generate", "printf '%s|'")
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split("|")[-2] == prompt
