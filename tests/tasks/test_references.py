"""The data sets' own programs are right, and broken ones are wrong: all of the shared files, in the sandbox."""

from pathlib import Path
from typing import Any

import pytest

from soka_cli.data.load import load_rows
from soka_cli.sandbox import find_isolation
from soka_cli.tasks import code_task
from soka_cli.tasks.base import Judgement
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.humaneval import HumanEval
from soka_cli.tasks.mbpp import Mbpp
from tests.builders import shared_folder

# Behind a program: whatever the function returned, it now returns something else.
BROKEN = """
def _changed(value):
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float, complex)): return value + 1
    if isinstance(value, str): return value + "?"
    if isinstance(value, (list, tuple)): return type(value)([*value, 1])
    return {"changed": 1}
_right = {name}
def {name}(*arguments, **named): return _changed(_right(*arguments, **named))
"""


@pytest.fixture(autouse=True)
def needs_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine gets its time: the slowest reference takes 5 seconds on an idle one."""
    if find_isolation().layer is None:
        pytest.skip("nothing isolates programs here")
    monkeypatch.setattr(code_task, "TIMEOUT", 60.0)


def judged(task: CodeTask, rows: list[dict[str, Any]], answers: list[str]) -> dict[str, Judgement]:
    examples = [task.example(row, index) for index, row in enumerate(rows)]
    found = task.judge_all(list(zip(answers, examples, strict=True)), (), (), "none")
    return {example.id: judgement for example, judgement in zip(examples, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "file", "answer", "count"),
    [
        (Mbpp(), "mbpp/mbpp.jsonl", "code", 874),
        (Mbpp(), "mbpp/sanitized-mbpp.json", "code", 371),
        (HumanEval(), "humaneval/HumanEval.jsonl", "canonical_solution", 131),
    ],
    ids=["mbpp", "sanitized", "humaneval"],
)
def test_every_reference_program_passes_judged_from_outside(task: CodeTask, file: str, answer: str, count: int) -> None:
    rows = load_rows(str(shared_folder("data", *Path(file).parts)), split="all", task=task.name)
    found = judged(task, rows, [row[answer] for row in rows])
    assert len(found) == count
    assert {name: one.why for name, one in found.items() if not one.correct["pass@1"]} == {}
    assert {name for name, one in found.items() if one.details["mode"] != "separate"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["evalplus", "span", "fence"])
def test_reference_programs_in_a_chats_words_pass_by_every_postprocessing(how: Any) -> None:
    task = Mbpp()
    rows = load_rows(str(shared_folder("data", "mbpp", "sanitized-mbpp.json")), split="all", task="mbpp")[::12]
    examples = [task.example(row, index) for index, row in enumerate(rows)]
    answers = [
        (f"Here is the function:\n\n```python\n{row['code']}\n```\n\nIt works as asked.", example)
        for row, example in zip(rows, examples, strict=True)
    ]
    found = task.judge_all(answers, (), (), how)
    assert {example.id: one.why for example, one in zip(examples, found, strict=True) if not one.correct["pass@1"]} == {}


def test_a_wrong_variant_of_each_of_fifty_fails() -> None:
    task = Mbpp()
    rows = load_rows(str(shared_folder("data", "mbpp", "sanitized-mbpp.json")), split="all", task="mbpp")[::7][:50]
    names = [next(iter(sorted(function_of(task, row)))) for row in rows]
    found = judged(task, rows, [row["code"] + "\n" + BROKEN.replace("{name}", name) for row, name in zip(rows, names, strict=True)])
    assert len(found) == 50
    assert {name for name, one in found.items() if one.correct["pass@1"]} == set()
    assert not any("the program" in str(one.why).partition(";")[0] for one in found.values()), "each ran and answered"


def function_of(task: Mbpp, row: dict[str, Any]) -> set[str]:
    """The function that a row's tests take from the program."""
    return set(task.exercise(row, "here").wanted) - {"math", "sys"}
