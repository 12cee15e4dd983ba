"""Wrong and right answers as a person sees them."""

import json
from pathlib import Path
from typing import Any

from soka_cli.stages.answers import LONGEST, answer_tables, shown_answers, tail
from soka_cli.stages.exam import Exam, prepare_exams
from soka_cli.stages.outcome import Table
from tests import builders


def exam(folder: Path, task: str, rows: list[dict[str, Any]]) -> Exam:
    builders.write_jsonl(folder / "items.jsonl", rows)
    mapping = builders.recipe_mapping("acme/model", "acme/data", eval=[{"task": task, "path": "items.jsonl"}])
    return prepare_exams(builders.stage_context(folder, mapping).recipe)[0]


def asked(folder: Path, count: int = 6, **changes: Any) -> tuple[Exam, Path]:
    """GSM8K items of which the even ones are answered right, the last item first in the file."""
    found = exam(folder, "gsm8k", builders.gsm8k_rows(count))
    rows = []
    for place, example in enumerate(found.examples):
        right = place % 2 == 0
        correct = {"strict": right, "flexible": True, "numeric": right}
        answer = {"id": example.id, "sample": 0, "completion": f"#### {example.gold}", "stop_reason": "eos", "extracted": example.gold}
        rows.append(answer | {"gold": example.gold, "correct": correct} | changes)
    return found, builders.write_jsonl(folder / "predictions.jsonl", rows[::-1])


def shown(folder: Path, count: int, **changes: Any) -> dict[str, Any]:
    found, path = asked(folder, **changes)
    return shown_answers(found, "base", path, count)


def cell(table: Table, name: str, column: int = 1) -> str:
    return str(next(row[column] for row in table.rows if row[0] == name))


def test_the_first_wrong_and_right_answers_by_the_headline_metric_are_shown_in_the_data_s_order(tmp_path: Path) -> None:
    found = shown(tmp_path, 2)
    assert [one["id"] for one in found["right"]] == ["0", "2"]
    assert [one["id"] for one in found["wrong"]] == ["1", "3"]


def test_a_wrong_one_stands_beside_a_right_one(tmp_path: Path) -> None:
    first, second = answer_tables(shown(tmp_path, 2))
    assert first.columns == second.columns == ("", "wrong", "right")
    assert [cell(first, "item", column) for column in (1, 2)] == ["1", "0"]
    assert {row[0] for row in first.rows} >= {"item", "prompt", "completion", "extracted", "gold", "why"}


def test_what_is_left_over_stands_alone(tmp_path: Path) -> None:
    found = shown(tmp_path, 3) | {"right": []}
    assert [table.columns for table in answer_tables(found)] == [("", "wrong")] * 3


def test_where_nothing_was_answered_that_is_said(tmp_path: Path) -> None:
    (table,) = answer_tables(shown(tmp_path, 1) | {"wrong": [], "right": []})
    assert "no answer is wrong" in table.title


def test_why_names_each_metric_s_verdict_and_what_the_judge_said(tmp_path: Path) -> None:
    (table,) = answer_tables(shown(tmp_path, 1, why="too deep"))
    assert cell(table, "why") == "strict no, flexible yes, numeric no; too deep"


def test_an_answer_in_which_none_was_found_says_so(tmp_path: Path) -> None:
    (table,) = answer_tables(shown(tmp_path, 1, extracted=None))
    assert cell(table, "why").endswith("; no answer found")


def test_the_prompt_s_end_is_shown_and_all_of_it_kept_for_programs(tmp_path: Path) -> None:
    found = shown(tmp_path, 1)
    assert found["wrong"][0]["prompt"].startswith("Question: ")
    assert tail("first\n" + "x" * 300 + "\n" + "last " * 60) == "... " + "last " * 60
    assert json.loads(json.dumps(found)) == found


def test_a_long_completion_is_cut_and_the_rest_counted(tmp_path: Path) -> None:
    (table,) = answer_tables(shown(tmp_path, 1, completion="y" * (LONGEST + 1234)))
    assert cell(table, "completion").endswith("... (1,234 more characters)")


def test_what_a_terminal_would_obey_is_not_shown_to_it(tmp_path: Path) -> None:
    (table,) = answer_tables(shown(tmp_path, 1, completion="a\x1b]0;title\x07\x9b2Jb\r\nc\td"))
    assert cell(table, "completion") == "a\ufffd]0;title\ufffd\ufffd2Jb\nc   d"


def programs(folder: Path, completion: str, program: str, why: str) -> Table:
    found = exam(folder, "mbpp", builders.mbpp_rows(1))
    row = {"id": "11", "sample": 0, "completion": completion, "stop_reason": "stop", "extracted": program, "gold": found.examples[0].gold}
    row |= {"correct": {"pass@1": False}, "why": why, "verdict": "fail", "mode": "separate"}
    (table,) = answer_tables(shown_answers(found, "base", builders.write_jsonl(folder / "predictions.jsonl", [row]), 1))
    return table


def test_of_a_program_the_tests_are_shown_as_they_read_and_the_one_that_failed_is_named(tmp_path: Path) -> None:
    table = programs(tmp_path, "x = 1", "x = 1", "assert add_0(5) == 5 does not hold; the program returned 6")
    assert cell(table, "tests").splitlines() == [f"assert add_0({x}) == {x}" for x in (0, 1, 5)]
    assert cell(table, "why") == "fail: assert add_0(5) == 5 does not hold; the program returned 6"
    assert "gold" not in {row[0] for row in table.rows}


def test_a_program_is_shown_where_it_is_not_the_completion(tmp_path: Path) -> None:
    assert cell(programs(tmp_path, "Here:\n```python\nx = 1\n```", "x = 1", "no"), "program") == "x = 1"
    assert cell(programs(tmp_path, "x = 1\n", "x = 1", "no"), "program") == "the completion as it is"
