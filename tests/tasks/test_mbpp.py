"""MBPP: what is asked, what is taken as the program, and what is right."""

from typing import Any

import pytest

from soka_cli.data.load import load_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox import find_isolation
from soka_cli.tasks.exercise import Exercise
from soka_cli.tasks.mbpp import SPLITS, Mbpp
from soka_cli.tasks.protocol import protocol_named
from tests import builders

TASK = Mbpp()
ROW = builders.mbpp_rows(1)[0] | {"text": "Write a function to add 0 to a number."}
SANITIZED = {
    "source_file": "b.ipynb", "task_id": 12, "prompt": "Write a function to halve.", "code": "def halve(x):\n    return x / 2",
    "test_imports": ["import math"], "test_list": ["assert math.isclose(halve(1), 0.5)"],
}  # fmt: skip
needs_isolation = pytest.mark.skipif(find_isolation().layer is None, reason="nothing isolates programs here")


def test_plain_asks_in_the_papers_words_and_shows_all_tests() -> None:
    prompt, target = protocol_named("plain", "mbpp").render(TASK.example(ROW, 0))
    assert prompt == (
        "You are an expert Python programmer, and here is your task: Write a function to add 0 to a number. Your code should pass these "
        "tests:\n\nassert add_0(0) == 0\nassert add_0(1) == 1\nassert add_0(5) == 5\n[BEGIN]\n"
    )
    assert target == "def add_0(x):\n    return x + 0\n[DONE]"
    assert "[DONE]" in protocol_named("plain", "mbpp").stops


def test_the_harness_s_words_are_the_papers_too() -> None:
    example = TASK.example(ROW, 0)
    assert protocol_named("lm-eval", "mbpp").render(example)[0] == protocol_named("plain", "mbpp").render(example)[0]


def test_evalplus_asks_with_a_docstring_of_the_problem_and_one_test() -> None:
    prompt = protocol_named("evalplus", "mbpp").render(TASK.example(ROW, 0))[0]
    assert prompt == '"""\nWrite a function to add 0 to a number.\nassert add_0(0) == 0\n"""\n'


def test_pissa_asks_with_the_training_template() -> None:
    prompt, target = protocol_named("pissa", "mbpp").render(TASK.example(ROW, 0))
    assert prompt.startswith("Below is an instruction") and "assert add_0(5) == 5\n\n### Response:" in prompt
    assert target == "def add_0(x):\n    return x + 0\n"


def test_training_and_evaluation_render_the_same() -> None:
    assert TASK.example(ROW, 0) == TASK.example(dict(ROW), 7)


def test_the_sanitized_set_has_its_problem_in_another_column_and_imports_for_its_tests() -> None:
    example = TASK.example(SANITIZED, 0)
    assert "Write a function to halve." in example.prompt
    assert Exercise.from_text(example.gold) == Exercise(("assert math.isclose(halve(1), 0.5)",), setup="import math")


def test_a_problem_with_fewer_tests_leaves_lines_empty() -> None:
    row = ROW | {"test_list": ["assert add_0(0) == 0"]}
    assert "assert add_0(0) == 0\n\n\n[BEGIN]" in protocol_named("lm-eval", "mbpp").render(TASK.example(row, 0))[0]


@pytest.mark.parametrize("absent", ["text", "code", "test_list"])
def test_a_row_without_a_field_is_a_data_error_that_names_it(absent: str) -> None:
    row = {name: value for name, value in ROW.items() if name != absent}
    with pytest.raises(SokaError) as caught:
        TASK.example(row, 3)
    assert caught.value.exit_code == ExitCode.DATA
    assert ("prompt" if absent == "text" else absent) in caught.value.what and "row 3" in caught.value.where and caught.value.hint


@pytest.mark.parametrize("tests", [[], ["assert f("], "assert f(1)", [3]])
def test_tests_that_cannot_be_run_are_a_data_error(tests: Any) -> None:
    with pytest.raises(SokaError) as caught:
        TASK.example(ROW | {"test_list": tests}, 0)
    assert caught.value.exit_code == ExitCode.DATA


@needs_isolation
def test_a_program_passes_or_fails_and_the_row_says_how() -> None:
    example = TASK.example(ROW, 0)
    right, wrong = TASK.judge_all([(ROW["code"], example), ("def add_0(x):\n    return x + 1", example)], ())
    assert (right.correct, right.extracted, right.details) == (
        {"pass@1": True},
        ROW["code"].replace("\r\n", "\n"),
        {"verdict": "pass", "mode": "separate"},
    )
    assert (wrong.correct, wrong.details["verdict"]) == ({"pass@1": False}, "fail")
    assert "add_0(0) == 0" in str(wrong.why)


@needs_isolation
def test_the_setup_that_the_harness_drops_is_run() -> None:
    row = ROW | {
        "code": "class Node:\n    def __init__(self, value):\n        self.value = value\ndef value(node):\n    return node.value",
        "test_setup_code": "root = Node(3)",
        "test_list": ["assert value(root) == 3"],
    }
    assert TASK.judge(row["code"], TASK.example(row, 0), ()).correct == {"pass@1": True}


@needs_isolation
def test_pissas_reading_is_judged_beside_ours_where_it_is_asked_for() -> None:
    example = TASK.example(ROW, 0)
    completion = "```python\ndef add_0(x):\n    # we assert nothing here\n    return x\n```"
    found = TASK.judge_all([(completion, example)], (), ("pissa",), "fence")[0]
    assert found.correct == {"pass@1": True, "pissa": False}
    assert set(TASK.judge_all([(completion, example)], (), (), "fence")[0].correct) == {"pass@1"}


@needs_isolation
def test_what_stands_behind_a_stop_string_is_no_part_of_the_program() -> None:
    example = TASK.example(ROW, 0)
    text = "def add_0(x):\n    return x\n[DONE]\nYou are an expert"
    assert TASK.judge_all([(text, example)], ("[DONE]",), (), "none")[0].correct == {"pass@1": True}
    assert TASK.judge_all([(text, example)], (), (), "none")[0].correct == {"pass@1": False}


@needs_isolation
def test_a_program_that_comes_twice_runs_once() -> None:
    example, told = TASK.example(ROW, 0), []
    found = TASK.judge_all([(ROW["code"], example)] * 5, (), ("pissa",), "none", told=lambda: told.append(1))
    assert [one.correct["pass@1"] for one in found] == [True] * 5
    assert len(told) == 2  # as it is, and without its carriage returns


# Splits


@pytest.mark.parametrize(("split", "count"), [("prompt", 10), ("test", 400), ("validation", 90), ("train", 374), ("all", 874)])
def test_a_file_of_everything_is_split_by_id(split: str, count: int) -> None:
    rows = load_rows(str(builders.shared_folder("data", "mbpp", "mbpp.jsonl")), split=split, task="mbpp")
    assert len(rows) == count
    assert split == "all" or {row["task_id"] for row in rows} <= set(SPLITS[split])


def test_the_sanitized_file_is_split_by_the_same_ids() -> None:
    path = str(builders.shared_folder("data", "mbpp", "sanitized-mbpp.json"))
    assert [len(load_rows(path, split=split, task="mbpp")) for split in SPLITS] == [7, 201, 43, 120]


def test_the_first_rows_are_those_of_the_split(tmp_path: Any) -> None:
    path = builders.write_jsonl(tmp_path / "m.jsonl", [{"task_id": number} for number in (5, 600, 700, 701, 702)])
    assert [row["task_id"] for row in load_rows(str(path), split="train", task="mbpp", rows=2)] == [700, 701]


@pytest.mark.parametrize(("row", "split", "said"), [({"task_id": 11}, "dev", "validation"), ({"id": 11}, "test", "task_id")])
def test_a_split_that_there_is_not_and_a_row_without_an_id_are_data_errors(
    tmp_path: Any, row: dict[str, Any], split: str, said: str
) -> None:
    path = builders.write_jsonl(tmp_path / "m.jsonl", [row])
    with pytest.raises(SokaError) as caught:
        load_rows(str(path), split=split, task="mbpp")
    assert caught.value.exit_code == ExitCode.DATA and said in str(caught.value)


def test_other_tasks_files_have_no_splits(tmp_path: Any) -> None:
    assert len(load_rows(str(builders.gsm8k_file(tmp_path, 3)), split="whatever", task="gsm8k")) == 3
