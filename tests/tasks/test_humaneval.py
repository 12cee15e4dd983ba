"""HumanEval: what is asked, how a completion becomes a program, and what is right."""

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox import find_isolation
from soka_cli.tasks.exercise import Exercise
from soka_cli.tasks.humaneval import HumanEval
from soka_cli.tasks.program import Postprocessing
from soka_cli.tasks.protocol import protocol_named
from tests import builders

TASK = HumanEval()
ROW = builders.humaneval_rows(2)[1]
BODY = ROW["canonical_solution"]
WHOLE = "def plus_1(xs: List[int]) -> List[int]:\n" + BODY
CHAT = f"Here it is:\n```python\n{WHOLE}```\nDone."
WRONG = "    return xs\n"
needs_isolation = pytest.mark.skipif(find_isolation().layer is None, reason="nothing isolates programs here")


def passes(completion: str, how: Postprocessing, row: dict[str, str] = ROW) -> bool:
    return TASK.judge_all([(completion, TASK.example(row, 0))], (), (), how)[0].correct["pass@1"]


@pytest.mark.parametrize("name", ["plain", "lm-eval"])
def test_the_prompt_is_asked_as_it_is(name: str) -> None:
    prompt, target = protocol_named(name, "humaneval").render(TASK.example(ROW, 0))
    assert (prompt, target) == (ROW["prompt"], BODY)


def test_evalplus_strips_the_prompt_and_ends_it_in_a_line_break() -> None:
    assert protocol_named("evalplus", "humaneval").render(TASK.example(ROW, 0))[0] == ROW["prompt"].strip() + "\n"


def test_an_instruction_asks_for_the_whole_function() -> None:
    prompt, target = protocol_named("pissa", "humaneval").render(TASK.example(ROW, 0))
    assert "Complete the following Python function" in prompt and prompt.endswith("### Response:")
    assert target == ROW["prompt"] + BODY + "\n"


@needs_isolation
@pytest.mark.parametrize(
    ("how", "completions"),
    [
        ("none", (BODY,)),
        ("fence", (BODY, WHOLE, CHAT, f"```\n{BODY}```")),
        ("span", (BODY, WHOLE, CHAT, BODY + "\nSo this adds one to each.", f"def helper(): pass\n{WHOLE}")),
        ("evalplus", (BODY, WHOLE, CHAT, BODY + "\nprint(plus_1([1]))\nassert plus_1([1]) == [9]\n")),
        ("pissa", (WHOLE, CHAT, WHOLE + "\nassert plus_1([1]) == [9]")),
    ],
)
def test_a_body_or_a_whole_function_makes_the_program(how: Postprocessing, completions: tuple[str, ...]) -> None:
    assert [passes(completion, how) for completion in completions] == [True] * len(completions)


@needs_isolation
def test_a_wrong_body_fails_and_an_empty_one_too() -> None:
    assert [passes(completion, "none") for completion in (WRONG, "", "not Python at all")] == [False] * 3


@needs_isolation
def test_the_harness_s_way_takes_a_whole_function_as_a_body_that_is_none() -> None:
    assert passes(WHOLE, "none")  # a second definition behind the prompt's unfinished one
    assert not passes(CHAT, "none")


HELPED = {
    "task_id": "HumanEval/32",
    "prompt": 'def poly(xs, x):\n    """ Value of a polynomial. """\n    return sum(c * x ** i for i, c in enumerate(xs))\n\n\n'
    'def find_zero(xs):\n    """ A zero of it. """\n',
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "test": "def check(candidate):\n    assert abs(poly([1, 2], candidate([1, 2]))) < 1e-4\n",
}


@needs_isolation
def test_a_helper_of_the_prompt_is_the_tests_own_and_no_program_replaces_it() -> None:
    assert passes(HELPED["canonical_solution"], "none", HELPED)
    cheat = "    return 77\n\ndef poly(xs, x):\n    return 0\n"
    assert not passes(cheat, "none", HELPED)


@needs_isolation
def test_a_program_may_use_its_own_helper_of_the_same_name() -> None:
    own = "    return poly(xs)\n\ndef poly(xs):\n    return -xs[0] / xs[1]\n"
    assert passes(own, "none", HELPED)


@pytest.mark.parametrize("absent", ["prompt", "entry_point", "test", "canonical_solution"])
def test_a_row_without_a_field_is_a_data_error_that_names_it(absent: str) -> None:
    with pytest.raises(SokaError) as caught:
        TASK.example({name: value for name, value in ROW.items() if name != absent}, 0)
    assert caught.value.exit_code == ExitCode.DATA and absent in caught.value.what


@pytest.mark.parametrize("change", [{"entry_point": "import os; f"}, {"test": "def check(candidate:"}])
def test_a_row_whose_test_cannot_be_run_is_a_data_error(change: dict[str, str]) -> None:
    with pytest.raises(SokaError) as caught:
        TASK.example(ROW | change, 0)
    assert caught.value.exit_code == ExitCode.DATA


def test_an_exercise_survives_its_text() -> None:
    exercise = TASK.exercise(ROW, "here")
    assert Exercise.from_text(exercise.to_text()) == exercise


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tests": "x"}', '{"tests": ["x"], "setup": 3}', "42"])
def test_a_text_that_is_no_exercise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Exercise.from_text(text)
