"""`soka plan --show-data`: rows as the model sees them, and which part of them is learnt."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from soka_cli.cli.render import Renderer
from soka_cli.data.encode import IGNORED, encode_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.plan import plan
from tests import builders


def planned(folder: Path, model: Path, rows: Path, count: int = 2, **data: Any) -> Outcome:
    mapping = builders.recipe_mapping(model, rows, data=data)
    return plan(builders.stage_context(folder, mapping, offline=True), show_data=count)


def test_a_sample_is_the_row_that_training_encodes(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    outcome = planned(tmp_path, llama_folder, gsm8k_file)
    recipe = builders.stage_context(tmp_path, builders.recipe_mapping(llama_folder, gsm8k_file)).recipe
    expected, _ = encode_rows(
        builders.byte_tokenizer(), builders.gsm8k_rows(2), source=recipe.data.sources[0], template="plain", max_length=256
    )
    shown = outcome.figures["rows_shown"]
    assert [(row["row"], row["input_ids"], row["labels"]) for row in shown] == [
        (row["row"], row["input_ids"], row["labels"]) for row in expected
    ]
    assert json.loads(json.dumps(outcome.figures)) == outcome.figures


@pytest.mark.parametrize("real", [False, True], ids=["bytes", "Llama 2"])
def test_its_parts_are_its_text_and_the_learnt_ones_its_labels(real: bool, tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    from transformers import AutoTokenizer

    model = builders.tiny_model_folder(tmp_path / "model")
    if real:
        AutoTokenizer.from_pretrained(builders.shared_folder("models", "llama2-tokenizer")).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    outcome = planned(tmp_path, model, gsm8k_file)
    assert len(outcome.samples) == 2
    for sample, row in zip(outcome.samples, outcome.figures["rows_shown"], strict=True):
        assert "".join(text for text, _ in sample.parts) == tokenizer.decode(row["input_ids"])
        assert [learnt for _, learnt in sample.parts] == [False, True]
        assert sample.parts[1][0].strip() == tokenizer.decode([label for label in row["labels"] if label != IGNORED]).strip()


def printed(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, *, terminal: bool) -> str:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Renderer().outcome(outcome)
    monkeypatch.undo()
    return stream.getvalue()


def test_learnt_text_is_in_brackets_where_there_are_no_colours_and_green_on_a_terminal(
    tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = planned(tmp_path, llama_folder, gsm8k_file, 1)
    answer = outcome.samples[0].parts[1][0]
    plain, coloured = (printed(monkeypatch, outcome, terminal=terminal) for terminal in (False, True))
    assert f"[[{answer}]]" in plain and "\x1b[" not in plain
    assert "[[" not in coloured and "\x1b[32m" in coloured


def test_rows_that_teach_nothing_are_passed_over_and_cut_ones_say_so(tmp_path: Path, llama_folder: Path) -> None:
    rows = builders.gsm8k_rows(4)
    rows[0]["question"] = "long " * 100
    rows[1]["answer"] = "so " * 100 + rows[1]["answer"]
    outcome = planned(tmp_path, llama_folder, builders.write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [(row["row"], row["truncated"]) for row in outcome.figures["rows_shown"]] == [(1, True), (2, False)]
    assert outcome.samples[0].title.endswith("cut: its end is not learnt")


def test_every_source_shows_its_own_rows(tmp_path: Path, llama_folder: Path) -> None:
    paths = [builders.gsm8k_file(tmp_path, 3, name) for name in ("one.jsonl", "two.jsonl")]
    mapping = builders.recipe_mapping(llama_folder, "unused", data={"train": [{"path": str(path), "task": "gsm8k"} for path in paths]})
    outcome = plan(builders.stage_context(tmp_path, mapping, offline=True), show_data=1)
    assert [row["path"] for row in outcome.figures["rows_shown"]] == list(map(str, paths))


def test_without_it_no_tokenizer_is_needed(tmp_path: Path) -> None:
    from soka_cli.recipe.load import load_recipe
    from soka_cli.run.layout import RunLayout
    from soka_cli.stages.context import StageContext

    context = StageContext(loaded=load_recipe("gsm8k"), layout=RunLayout(tmp_path / "run"), offline=True)
    assert plan(context).samples == ()
    with pytest.raises(SokaError) as failure:
        plan(context, show_data=1)
    assert failure.value.exit_code is ExitCode.ENVIRONMENT


def test_the_plan_says_what_becomes_of_the_rows(tmp_path: Path, llama_folder: Path) -> None:
    rows = builders.gsm8k_rows(6)
    rows[0]["question"] = "long " * 100
    rows[3]["answer"] = "so " * 100 + rows[3]["answer"]
    data = builders.write_jsonl(tmp_path / "rows.jsonl", rows)
    outcome = planned(tmp_path, llama_folder, data, 0)
    ledger = outcome.figures["training"]["ledger"]
    assert (ledger["read"], ledger["used"], ledger["truncated_rows"], ledger["dropped_rows"]) == (
        6,
        5,
        [3],
        {"the prompt fills max_length": [0]},
    )
    assert any("1 of 6 rows are cut at 256 tokens" in note for note in outcome.notes)
    table = next(table for table in outcome.tables if table.title == "Training rows")
    assert "1 (row 0): the prompt fills max_length" in table.rows[0]


def test_a_plan_of_rows_that_teach_nothing_is_refused_with_their_count(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    with pytest.raises(SokaError) as failure:
        planned(tmp_path, llama_folder, gsm8k_file, 0, max_length=8)
    assert failure.value.exit_code is ExitCode.TRAINING
    assert "24 rows: the prompt fills max_length" in failure.value.why


def test_planned_packs_are_those_that_training_reads(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    from soka_cli.stages.train import train

    mapping = builders.recipe_mapping(
        llama_folder, gsm8k_file, data={"packing": True, "max_length": 512}, train={"steps": None, "epochs": 2, "batch_size": 2}
    )
    training = plan(builders.stage_context(tmp_path, mapping, offline=True)).figures["training"]
    context = builders.stage_context(tmp_path, mapping, run="trained")
    figures = train(context).figures
    packing = json.loads(context.layout.environment("train").read_text())["data"]["packing"]
    assert (training["packs"], training["rows"], training["steps"]) == (packing["packs"], 24, figures["steps"])
    assert training["packs"] < 24


def test_rows_that_depend_on_evaluations_elsewhere_are_not_counted(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    mapping = builders.recipe_mapping(
        llama_folder, gsm8k_file, data={"decontaminate": "drop"}, eval=[{"task": "gsm8k", "path": "acme/elsewhere"}]
    )
    training = plan(builders.stage_context(tmp_path, mapping, offline=True)).figures["training"]
    assert (training["rows"], training["ledger"]) == (None, None)


def test_the_plan_counts_rows_that_an_evaluation_has_too(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    test = builders.gsm8k_file(tmp_path, 3, "test.jsonl")
    mapping = builders.recipe_mapping(llama_folder, gsm8k_file, data={"decontaminate": "drop"}, eval=[{"task": "gsm8k", "path": str(test)}])
    training = plan(builders.stage_context(tmp_path, mapping, offline=True)).figures["training"]
    assert training["rows"] == 21 and training["ledger"]["dropped"] == {"an evaluation has it too": 3} and not training["sampled"]
