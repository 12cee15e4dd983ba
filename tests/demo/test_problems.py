"""The demo's task: what its rows hold, and that training and test share no problem."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from soka_cli.demo.problems import TEMPLATES, Problem, demo_splits, draw_problems
from soka_cli.tasks.base import task_named

Splits = tuple[list[Problem], list[Problem]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return demo_splits()


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_packaged_rows_are_what_the_generator_writes(splits: Splits, name: str) -> None:
    packaged = files("soka_cli.demo").joinpath(f"data/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    written = splits[("train", "test").index(name)]
    assert [json.loads(line) for line in packaged] == [problem.row for problem in written]
    assert len(written) == {"train": 4000, "test": 200}[name]


def test_no_test_problem_has_a_template_and_numbers_of_training(splits: Splits) -> None:
    train, test = ({problem.key for problem in rows} for rows in splits)
    assert not train & test
    assert (len(train), len(test)) == (4000, 200)


def test_a_key_names_the_numbers_of_its_question_in_order(splits: Splits) -> None:
    for problem in splits[1]:
        assert [int(number) for number in re.findall(r"\d+", problem.question)] == list(problem.key[1])


def test_each_template_is_asked_equally_often(splits: Splits) -> None:
    for rows in splits:
        assert set(Counter(problem.key[0] for problem in rows).values()) == {len(rows) // len(TEMPLATES)}
    assert len(TEMPLATES) == 10


def test_every_answer_has_steps_that_hold_and_ends_in_the_last_result(splits: Splits) -> None:
    for problem in splits[0] + splits[1]:
        *steps, last = problem.answer.split("\n")
        results = []
        for step in steps:
            left, operator, right, value = re.fullmatch(r"\D+ (\d+)([-+*/])(\d+)=(\d+) [a-z ]+\.", step).groups()
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right), "/": int(left) / int(right)}[
                operator
            ] == int(value)
            results.append(value)
        assert len(steps) >= 2
        assert last == f"#### {results[-1]}"


def test_gsm8k_judges_the_written_answers_as_right_by_every_metric(splits: Splits) -> None:
    task = task_named("gsm8k")
    for index, problem in enumerate(splits[1]):
        assert all(task.judge(problem.answer, task.example(problem.row, index), ()).correct.values())


def test_a_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert draw_problems(30, 5) == draw_problems(30, 5)
    assert draw_problems(30, 5) != draw_problems(30, 6)


def test_excluded_problems_do_not_come_up() -> None:
    first = {problem.key for problem in draw_problems(100, 7)}
    assert not first & {problem.key for problem in draw_problems(100, 7, exclude=first)}
