"""Evaluation: what is asked, kept, gone on with and refused."""

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
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.run.digest import folder_digest
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.run.manifest import Manifest, StageRecord
from soka_cli.run.reporter import SilentReporter
from soka_cli.sandbox.isolation import Isolation, find_isolation
from soka_cli.stages import continuous, execution
from soka_cli.stages import evaluate as evaluate_module
from soka_cli.stages.agreement import NEAR_TIE, agreement
from soka_cli.stages.answerer import Completion
from soka_cli.stages.completions import Completer
from soka_cli.stages.context import StageContext
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.judged_model import ModelShelf
from soka_cli.stages.local_answerer import LocalAnswerer, steady
from soka_cli.stages.score import score
from tests import builders
from tests.builders import REPOSITORY, gsm8k_file, recipe_mapping, tiny_model_folder, write_recipe

ITEMS = 12
ENTRY = {"task": "gsm8k", "protocol": "plain", "max_new_tokens": 10, "batch_size": 4}
NAME = "gsm8k-plain"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a test file, and a trained-looking adapter with the model merged from it."""
    import peft
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("material")
    tiny_model_folder(folder / "base")
    gsm8k_file(folder, ITEMS, "test.jsonl")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(base, config)
    tuned.save_pretrained(folder / "adapter")
    tuned.merge_and_unload().save_pretrained(folder / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "base" / name, folder / "merged" / name)
    return folder


def context_of(material: Path, run: Path, *, entries: list[dict[str, Any]] | None = None, **options: Any) -> StageContext:
    entries = entries or [ENTRY]
    mapping = recipe_mapping(material / "base", material / "test.jsonl")
    mapping["eval"] = [{"path": str(material / "test.jsonl")} | entry for entry in entries]
    recipe = write_recipe(run.parent / f"{run.name}.yaml", mapping)
    return StageContext(loaded=load_recipe(recipe), layout=RunLayout(run), device="cpu", **options)


def with_tuned(material: Path, run: Path) -> RunLayout:
    layout = RunLayout(run)
    shutil.copytree(material / "adapter", layout.adapter)
    shutil.copytree(material / "merged", layout.merged_model)
    return layout


def refused(context: StageContext, code: ExitCode, **options: Any) -> str:
    if options.pop("force", False):
        context = StageContext(loaded=context.loaded, layout=context.layout, device="cpu", force=True)
    with pytest.raises(SokaError) as caught:
        evaluate(context, **options)
    assert caught.value.exit_code == code
    assert caught.value.hint
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """A run whose base, adapter and merged model have been asked."""
    run = tmp_path_factory.mktemp("runs") / "run"
    with_tuned(material, run)
    context = context_of(material, run)
    assert evaluate(context).status == "done"
    return context


def copy_of(context: StageContext, folder: Path) -> StageContext:
    run = folder / "run"
    shutil.copytree(context.layout.root, run)
    return StageContext(loaded=context.loaded, layout=RunLayout(run), device="cpu")


def scores_of(context: StageContext, kind: str) -> dict[str, Any]:
    return json.loads(context.layout.scores(NAME, kind).read_text())


def test_every_kind_that_exists_is_asked_every_item_once(finished: StageContext) -> None:
    for kind in ("base", "adapter", "merged"):
        rows = read_lines(finished.layout.predictions(NAME, kind))
        assert sorted(int(row["id"]) for row in rows) == list(range(ITEMS))
        assert {"id", "sample", "prompt_sha256", "completion", "stop_reason", "extracted", "gold", "correct"} <= rows[0].keys()


def test_scores_say_what_was_asked_of_what(finished: StageContext) -> None:
    base, adapter, merged = (scores_of(finished, kind) for kind in ("base", "adapter", "merged"))
    assert merged["adapter_sha256"] == adapter["adapter_sha256"]
    assert (base["adapter_sha256"], base["model"], base["n"], base["items"]) == (None, "base", ITEMS, ITEMS)
    assert len(adapter["adapter_sha256"]) == 64
    assert base["data_sha256"] == merged["data_sha256"]
    assert set(base["metrics"]) == {"strict", "flexible", "numeric"}
    assert base["decoding"]["strategy"] == "greedy"
    assert base["protocol"] == "plain"
    assert "harness" in base["reference"]


def test_the_adapter_answers_otherwise_than_the_base_and_as_the_merged_model(finished: StageContext) -> None:
    completions = {
        kind: {row["id"]: row["completion"] for row in read_lines(finished.layout.predictions(NAME, kind))}
        for kind in ("base", "adapter", "merged")
    }
    assert completions["base"] != completions["adapter"]
    found = agreement(finished.layout, NAME)
    assert found is not None
    assert found.items == ITEMS
    assert found.equal == sum(completions["adapter"][item] == completions["merged"][item] for item in completions["adapter"])
    assert all(difference.near_tie for difference in found.differences)


def test_asked_again_nothing_is_loaded_and_nothing_changes(finished: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelShelf, "get", lambda *_: pytest.fail("a model was loaded"))
    before = finished.layout.scores(NAME, "base").stat().st_mtime_ns
    again = evaluate(finished)
    assert again.status == "already done"
    assert finished.layout.scores(NAME, "base").stat().st_mtime_ns == before
    assert [scores["model"] for scores in again.figures["scores"]] == ["base", "adapter", "merged"]


def test_score_judges_as_eval_does(finished: StageContext, tmp_path: Path) -> None:
    path = finished.layout.predictions(NAME, "adapter")
    score(path, task="gsm8k", protocol="plain", out=tmp_path)
    rows, again = read_lines(path), read_lines(tmp_path / "predictions.jsonl")
    judgements = [[(row["id"], row["extracted"], row["gold"], row["correct"]) for row in some] for some in (rows, again)]
    assert judgements[0] == judgements[1]
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"] == scores_of(finished, "adapter")["metrics"]


@pytest.mark.parametrize("size", [1, 8])
def test_completions_do_not_depend_on_the_batch_size(material: Path, tmp_path: Path, finished: StageContext, size: int) -> None:
    context = context_of(material, tmp_path / "run", entries=[ENTRY | {"batch_size": size}])
    evaluate(context, kinds=["base"])
    rows, others = (read_lines(one.layout.predictions(NAME, "base")) for one in (context, finished))
    texts = [{row["id"]: (row["completion"], row["stop_reason"]) for row in some} for some in (rows, others)]
    assert texts[0] == texts[1]


def test_the_batch_size_is_no_input(material: Path, tmp_path: Path, finished: StageContext) -> None:
    context = copy_of(finished, tmp_path)
    other = context_of(material, context.layout.root, entries=[ENTRY | {"batch_size": 3}])
    assert evaluate(other, kinds=["base"]).status == "already done"


HANGING = """
import sys, time, torch
torch.set_num_threads(1)
from pathlib import Path
from soka_cli.stages.local_answerer import LocalAnswerer
from tests.stages.test_evaluate import ENTRY, context_of, evaluate

answer = LocalAnswerer.answer

def hanging(self, questions, done):
    for number, one in enumerate(one for answers in answer(self, questions, done) for one in answers):
        time.sleep(600 if number == 5 else 0)
        yield [one]

LocalAnswerer.answer = hanging
material, run, batching = sys.argv[1:]
evaluate(context_of(Path(material), Path(run), entries=[ENTRY | {"batch_size": 2, "batching": batching}]), kinds=["base"])
"""


def killed(material: Path, run: Path, batching: str) -> None:
    """Evaluate the base in a process of its own, and kill it when five items are answered."""
    path = RunLayout(run).predictions(NAME, "base")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    arguments = [sys.executable, "-c", HANGING, str(material), str(run), batching]
    with subprocess.Popen(arguments, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while (not path.exists() or path.read_bytes().count(b"\n") < 5) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode() if process.stderr else ""


@pytest.mark.parametrize("batching", ["padded", "continuous"])
def test_killed_and_resumed_gives_the_file_of_an_undisturbed_run(material: Path, tmp_path: Path, batching: str) -> None:
    entry = ENTRY | {"batch_size": 2, "batching": batching}
    whole = context_of(material, tmp_path / "whole", entries=[entry])
    evaluate(whole, kinds=["base"])
    killed(material, tmp_path / "killed", batching)
    context = context_of(material, tmp_path / "killed", entries=[entry])
    path = context.layout.predictions(NAME, "base")
    partial = path.read_bytes()
    assert partial.count(b"\n") == 5
    path.write_bytes(partial[: partial.rindex(b'{"id"') + 30])  # the kill fell into the last line of a batch
    evaluate(context, kinds=["base"])
    assert path.read_bytes() == whole.layout.predictions(NAME, "base").read_bytes()
    assert any("cut off" in message for message in context.reporter.messages)
    assert scores_of(context, "base")["metrics"] == scores_of(whole, "base")["metrics"]


def test_the_file_is_the_same_whatever_company_moves_of_a_lead(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Company is made to move leads by ten times what rounding moves them by on a large model."""
    lead = continuous.lead
    monkeypatch.setattr(continuous, "lead", lambda scores: lead(scores) + 1e-4 * len(scores))
    context = context_of(material, tmp_path / "run", entries=[ENTRY | {"batching": "continuous"}])
    evaluate(context, kinds=["base"])
    path = context.layout.predictions(NAME, "base")
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[5:6]))
    context.layout.scores(NAME, "base").unlink()
    unfinish(context, "eval/gsm8k-plain-base")
    evaluate(context, kinds=["base"])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("gap", [0.0, 0.0499, 0.05, 0.1234, 7.0])
def test_rounding_a_lead_makes_and_takes_no_near_tie(gap: float) -> None:
    found = steady(Completion("", "eos", 1, gap)).smallest_gap
    assert found is not None and 0 <= gap - found < NEAR_TIE
    assert (found < NEAR_TIE) == (gap < NEAR_TIE)


@pytest.mark.parametrize("limit", [3, 6, None])
def test_another_limit_is_stale_until_forced_and_never_mixed(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    run = tmp_path / "run"
    entry = ENTRY | {"batching": "padded"}
    evaluate(context_of(material, run, entries=[entry | {"limit": 5}]), kinds=["base"])
    path = RunLayout(run).predictions(NAME, "base")
    first = path.read_bytes()
    other = context_of(material, run, entries=[entry | {"limit": limit}])
    assert "limit: 5 -> " in refused(other, ExitCode.RUN, kinds=["base"])
    assert path.read_bytes() == first
    asked: list[int] = []
    complete = Completer.complete
    monkeypatch.setattr(Completer, "complete", lambda self, prompts, seeds: asked.append(len(prompts)) or complete(self, prompts, seeds))
    evaluate(StageContext(loaded=other.loaded, layout=other.layout, device="cpu", force=True), kinds=["base"])
    assert sum(asked) == len(read_lines(path)) == (limit or ITEMS)
    assert [old.read_bytes() for old in other.layout.set_aside.rglob(path.name)] == [first]


def test_another_adapter_is_stale_until_forced(material: Path, tmp_path: Path, finished: StageContext) -> None:
    from safetensors.torch import load_file, save_file

    context = copy_of(finished, tmp_path)
    weights = context.layout.adapter / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert "adapter_sha256" in refused(context, ExitCode.RUN, kinds=["adapter"])
    forced = StageContext(loaded=context.loaded, layout=context.layout, device="cpu", force=True)
    assert evaluate(forced, kinds=["adapter"]).status == "done"
    assert list(context.layout.set_aside.iterdir())


def test_changed_data_is_stale(material: Path, tmp_path: Path, finished: StageContext) -> None:
    context = copy_of(finished, tmp_path)
    other = gsm8k_file(tmp_path, ITEMS - 1, "other.jsonl")
    changed = context_of(material, context.layout.root, entries=[ENTRY | {"path": str(other)}])
    assert "data_sha256" in refused(changed, ExitCode.RUN, kinds=["base"])


def note_merge(context: StageContext, digest: str) -> None:
    """Make the manifest say of which adapter folder the merged model was made."""
    record = StageRecord(status="done", started="2026-01-01T00:00:00Z", inputs={"adapter_sha256": digest}, inputs_sha256="0" * 64)
    Manifest.read(context.layout.manifest).with_stage("merge", record).write(context.layout.manifest)


def test_a_merged_model_of_another_adapter_is_stale(tmp_path: Path, finished: StageContext) -> None:
    context = copy_of(finished, tmp_path)
    note_merge(context, folder_digest(context.layout.adapter))
    assert evaluate(context, kinds=["merged"]).status == "already done"
    note_merge(context, "0" * 64)
    assert "soka merge" in refused(context, ExitCode.RUN, kinds=["merged"])


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b'{"id": "3"}\n', b'{"a": NaN}\n'])
def test_a_damaged_line_in_the_middle_is_named(material: Path, tmp_path: Path, finished: StageContext, line: bytes) -> None:
    context = copy_of(finished, tmp_path)
    path = context.layout.predictions(NAME, "base")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line, *lines[4:]]))
    assert "predictions.jsonl" in refused(context, ExitCode.RUN, kinds=["base"])
    unfinish(context, "eval/gsm8k-plain-base")
    message = refused(context, ExitCode.RUN, kinds=["base"])
    assert "predictions.jsonl" in message
    assert "line 4" in message


def unfinish(context: StageContext, stage: str) -> None:
    """Make the manifest say that the stage was killed."""
    manifest = Manifest.read(context.layout.manifest)
    record = manifest.stages[stage].model_copy(update={"status": "running", "outputs": ()})
    manifest.with_stage(stage, record).write(context.layout.manifest)


@pytest.mark.parametrize("change", [{"id": "99"}, {"prompt_sha256": "0" * 64}, {"sample": 1}, {"correct": {"strict": True}}])
def test_rows_of_another_evaluation_are_refused(tmp_path: Path, finished: StageContext, change: dict[str, Any]) -> None:
    context = copy_of(finished, tmp_path)
    path = context.layout.predictions(NAME, "base")
    rows = read_lines(path)
    rows[2] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinish(context, "eval/gsm8k-plain-base")
    assert "line 3" in refused(context, ExitCode.RUN, kinds=["base"])


def test_scores_cut_short_are_named(tmp_path: Path, finished: StageContext) -> None:
    context = copy_of(finished, tmp_path)
    path = context.layout.scores(NAME, "base")
    path.write_text(path.read_text()[:-20])
    assert "scores.json" in refused(context, ExitCode.RUN, kinds=["base"])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_named(material: Path, tmp_path: Path, name: str) -> None:
    layout = with_tuned(material, tmp_path / "run")
    path = layout.adapter / name
    path.write_bytes(path.read_bytes()[:-40])
    assert "adapter" in refused(context_of(material, tmp_path / "run"), ExitCode.RUN, kinds=["adapter"])
    path.unlink()
    assert name in refused(context_of(material, tmp_path / "run"), ExitCode.RUN, kinds=["adapter"], force=True)


@pytest.mark.parametrize(("kind", "command"), [("adapter", "soka train"), ("merged", "soka merge")])
def test_a_model_that_is_not_there_yet_names_the_stage_that_makes_it(material: Path, tmp_path: Path, kind: str, command: str) -> None:
    assert command in refused(context_of(material, tmp_path / "run"), ExitCode.RUN, kinds=[kind])


def test_programs_that_nothing_isolates_are_refused_before_a_model_is_loaded(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Isolation(None, {}, (("bubblewrap", "bwrap is not installed"),))
    monkeypatch.setattr(execution, "find_isolation", lambda: none)
    monkeypatch.setattr(evaluate_module, "LocalAnswerers", lambda *_: pytest.fail("models were looked at"))
    file = builders.write_jsonl(tmp_path / "mbpp.jsonl", builders.mbpp_rows(2))
    context = context_of(material, tmp_path / "run", entries=[{"task": "mbpp", "path": str(file), "split": "all"}])
    assert "--unsafe-execution" in refused(context, ExitCode.ENVIRONMENT)
    assert not context.layout.root.exists()


@pytest.mark.parametrize(
    ("task", "protocol", "rows"),
    [
        ("mbpp", "plain", builders.mbpp_rows(5)),
        ("mbpp", "pissa", builders.mbpp_rows(5)),
        ("humaneval", "plain", builders.humaneval_rows(5)),
        ("humaneval", "pissa", builders.humaneval_rows(5)),
    ],
)
def test_programs_are_asked_for_run_and_scored(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, protocol: str, rows: list[dict[str, Any]]
) -> None:
    """A model of bytes writes no program, so its words are replaced: right for the first two items, wrong for the others."""
    if find_isolation().layer is None:
        pytest.skip("nothing isolates programs here")
    file = builders.write_jsonl(tmp_path / "items.jsonl", rows)
    texts = [str(row.get("code", row.get("canonical_solution"))) if place < 2 else "pass" for place, row in enumerate(rows)]
    by_id = {str(row["task_id"]): Completion(text, "eos", 3, None) for row, text in zip(rows, texts, strict=True)}
    monkeypatch.setattr(LocalAnswerer, "answer", lambda self, questions, done: [[(one, by_id[one.id]) for one in questions]])
    entry = {"task": task, "protocol": protocol, "path": str(file), "max_new_tokens": 4}
    context = context_of(material, tmp_path / "run", entries=[entry])
    evaluate(context, kinds=["base"])
    scores = json.loads(context.layout.scores(f"{task}-{protocol}", "base").read_text())
    assert scores["metrics"]["pass@1"]["value"] == pytest.approx(0.4)
    assert scores["execution"]["verdicts"] == {"pass": 2, "fail": 3, "timeout": 0}
    assert ("pissa" in scores["metrics"]) == (protocol == "pissa")
    predictions = context.layout.predictions(f"{task}-{protocol}", "base")
    assert [row["correct"]["pass@1"] for row in read_lines(predictions)] == [True, True, False, False, False]
    again = score(predictions, task=task, protocol=protocol).figures
    assert again["metrics"] == scores["metrics"]


def test_missing_data_and_no_entry_are_refused(material: Path, tmp_path: Path) -> None:
    refused(context_of(material, tmp_path / "run", entries=[ENTRY | {"path": str(tmp_path / "no.jsonl")}]), ExitCode.DATA)
    context = context_of(material, tmp_path / "none")
    recipe = context.recipe.model_copy(update={"eval": []})
    loaded = type(context.loaded)(**vars(context.loaded) | {"recipe": recipe})
    refused(StageContext(loaded=loaded, layout=context.layout), ExitCode.USAGE)


def test_two_rows_of_one_id_are_refused(material: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": 1, "question": "q", "answer": "#### 1"}\n' * 2)
    assert "id 1" in refused(context_of(material, tmp_path / "run", entries=[ENTRY | {"path": str(path)}]), ExitCode.DATA)


def test_any_model_or_adapter_folder_can_be_judged(material: Path, tmp_path: Path, finished: StageContext) -> None:
    for name, kind in (("merged", "merged"), ("adapter", "adapter")):
        context = context_of(material, tmp_path / name)
        outcome = evaluate(context, kinds=[], folder=material / name)
        assert [scores["model"] for scores in outcome.figures["scores"]] == ["other"]
        assert context.layout.predictions(NAME, "other").read_bytes() == finished.layout.predictions(NAME, kind).read_bytes()
    refused(context_of(material, tmp_path / "empty"), ExitCode.ENVIRONMENT, folder=tmp_path)


def test_protocols_are_asked_apart_and_shown_apart(material: Path, tmp_path: Path) -> None:
    context = context_of(material, tmp_path / "run", entries=[ENTRY | {"limit": 2}, ENTRY | {"protocol": "pissa", "limit": 2}])
    outcome = evaluate(context, show=1)
    plain, pissa = outcome.figures["scores"]
    assert plain["template_sha256"] != pissa["template_sha256"]
    assert [table.title for table in outcome.tables if "protocol" in table.title] == [
        "gsm8k-plain (task gsm8k, protocol plain)",
        "gsm8k-pissa (task gsm8k, protocol pissa)",
    ]
    assert any("not public" in note for note in outcome.notes)
    assert any("answers by" in table.title and table.rows for table in outcome.tables)


def test_a_prompt_beyond_the_context_is_recorded_not_asked(material: Path, tmp_path: Path) -> None:
    rows = [{"question": word * count, "answer": "#### 1"} for word, count in (("long ", 200), ("a", 480), ("short", 1))]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reporter = SilentReporter()
    context = context_of(material, tmp_path / "run", entries=[ENTRY | {"path": str(path), "max_new_tokens": 40}], reporter=reporter)
    evaluate(context, kinds=["base"])
    by_id = {row["id"]: row for row in read_lines(context.layout.predictions(NAME, "base"))}
    assert (by_id["0"]["stop_reason"], by_id["0"]["completion"]) == ("context", "")
    assert by_id["1"]["stop_reason"] == "context"
    assert by_id["1"]["tokens"] == 512 - 480 - len("Question: \nAnswer:") - 1  # the byte tokenizer's BOS
    assert by_id["2"]["stop_reason"] == "length"
    assert len(reporter.warnings) == 2
