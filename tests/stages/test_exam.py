"""Eval entries made ready to be asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.stages.exam import Exam, prepare_exams
from tests.builders import gsm8k_file, gsm8k_rows, recipe_mapping, write_jsonl, write_recipe

PROBLEM = {"problem": "How many?", "solution": "It is $\\boxed{2}$.", "level": "Level 3", "type": "Geometry"}


def exam(folder: Path, entry: dict[str, Any], *overrides: str) -> Exam:
    mapping = recipe_mapping("acme/model", "acme/data", eval=[entry])
    return prepare_exams(load_recipe(write_recipe(folder / "r.yaml", mapping), overrides).recipe)[0]


def shown(folder: Path, **entry: Any) -> Exam:
    """An exam of five-shot GSM8K on a file of 6 items, its shots drawn from one of 20 rows."""
    gsm8k_file(folder, 6, "test.jsonl")
    write_jsonl(folder / "train.jsonl", gsm8k_rows(40)[20:])
    whole = {"task": "gsm8k", "protocol": "lm-eval", "path": "test.jsonl", "shots": {"path": "train.jsonl"}} | entry
    return exam(folder, whole)


def test_drawn_shots_stand_in_every_prompt_and_come_from_the_rows_named(tmp_path: Path) -> None:
    found = shown(tmp_path)
    training = {row["question"] for row in gsm8k_rows(40)[20:]}
    assert len(set(found.prompts)) == 6
    for prompt, example in zip(found.prompts, found.examples, strict=True):
        *solved, asked = prompt.split("\n\n")
        assert len(solved) == 5
        assert asked == f"Question: {example.prompt}\nAnswer:"
        assert {one.split("Question: ")[1].split("\nAnswer:")[0] for one in solved} <= training


def test_a_limit_leaves_the_first_items_prompts_as_they_are(tmp_path: Path) -> None:
    assert shown(tmp_path, limit=2).prompts == shown(tmp_path).prompts[:2]


def test_other_rows_to_show_are_another_input(tmp_path: Path) -> None:
    before = shown(tmp_path)
    gsm8k_file(tmp_path, 20, "other.jsonl")
    after = shown(tmp_path, shots={"path": "other.jsonl"})
    assert before.shots_sha256 != after.shots_sha256
    assert before.inputs == after.inputs  # where they lie is no input
    assert before.template_sha256 == after.template_sha256


def test_rows_to_show_have_to_be_named_where_the_items_are_a_file(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        shown(tmp_path, shots=None)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "shots: {path: train.jsonl}" in str(caught.value.hint)


def test_a_hub_data_sets_own_training_split_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def rows(path: str, **options: Any) -> list[dict[str, str]]:
        asked.append((path, options))
        return gsm8k_rows(8)

    monkeypatch.setattr("soka_cli.stages.exam.load_rows", rows)
    entry = {"task": "gsm8k", "protocol": "lm-eval", "path": "openai/gsm8k", "config": "main", "revision": "abc"}
    exam(tmp_path, entry)
    assert [(path, options["split"], options["config"], options["revision"]) for path, options in asked] == [
        ("openai/gsm8k", "test", "main", "abc"),
        ("openai/gsm8k", "train", "main", "abc"),
    ]


def test_the_longest_answer_is_the_protocols_unless_the_recipe_names_one(tmp_path: Path) -> None:
    gsm8k_file(tmp_path, 3, "test.jsonl")
    entry = {"task": "gsm8k", "protocol": "pissa", "path": "test.jsonl"}
    assert (exam(tmp_path, entry).max_new_tokens, exam(tmp_path, entry | {"max_new_tokens": 7}).max_new_tokens) == (1024, 7)
    assert exam(tmp_path, entry).inputs == exam(tmp_path, entry | {"max_new_tokens": 1024}).inputs


def test_a_protocols_readings_are_metrics_beside_the_tasks_own(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(PROBLEM) + "\n", encoding="utf-8")
    found = exam(tmp_path, {"task": "math", "protocol": "pissa", "path": "test.jsonl"})
    assert found.metrics == ("exact", "symbolic", "metamath")
    assert found.examples[0].groups == {"subject": "Geometry", "level": "Level 3"}


def test_another_protocol_by_override_is_another_exam(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(PROBLEM) + "\n", encoding="utf-8")
    entry = {"task": "math", "protocol": "plain", "path": "test.jsonl"}
    plain, other = exam(tmp_path, entry), exam(tmp_path, entry, "eval.0.protocol=lm-eval")
    assert (plain.name, other.name) == ("math-plain", "math-lm-eval")
    assert plain.prompts != other.prompts
    assert plain.protocol.sha256 != other.protocol.sha256
