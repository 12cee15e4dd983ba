"""How GSM8K answers are read and compared."""

import json
from fractions import Fraction

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.base import Example, task_named
from soka_cli.tasks.gsm8k import Gsm8k, answer_number
from soka_cli.tasks.number import exact, numbers, spelled
from soka_cli.tasks.protocol import COMMON_STOPS
from tests.builders import shared_folder

TASK = Gsm8k()


def verdict(completion: str, gold: str, stops: tuple[str, ...] = COMMON_STOPS) -> dict[str, bool]:
    return TASK.judge(completion, Example("0", "", "", gold), stops).correct


@pytest.mark.parametrize(
    ("completion", "gold", "strict", "flexible", "numeric"),
    [
        ("She has 18.\n#### 18", "18", True, True, True),
        ("#### 1,234", "1234", True, True, True),
        ("#### 1234", "1,234", True, True, True),
        ("#### -5", "-5", True, True, True),
        ("####18", "18", False, True, True),  # the harness wants exactly one space
        ("####  18", "18", False, True, True),
        ("#### $18", "18", False, True, True),
        ("#### **18**", "18", False, True, True),
        ("#### 18.", "18", True, True, True),
        ("#### 18.00", "18", False, False, True),  # strings against numbers
        ("#### 18.00", "18.00", True, True, True),
        ("#### 1/2", "0.5", False, False, True),
        ("#### \\frac{1}{2}", "0.5", False, False, True),
        ("#### 18 apples in 3 steps", "18", True, False, True),  # flexible takes any later number
        ("#### 18...", "18", False, False, True),  # the harness deletes one full stop only
        ("#### 7\n#### 18", "18", False, True, True),  # strict reads the first mark, numeric the last
        ("#### 18\n#### 7", "18", True, False, False),
        ("The answer is: 18", "18", False, True, True),
        ("The answer is 18.", "18", False, True, True),
        ("so \\boxed{18} after 3 steps", "18", False, False, True),
        ("It is 18", "18", False, True, True),
        ("no number at all", "18", False, False, False),
        ("", "18", False, False, False),
        ("#### 18\n\nQuestion: what is 5?\n#### 5", "18", True, False, True),  # numeric stops where the next item begins
        ("#### 80", "18", False, False, False),
        ("#### 181", "18", False, False, False),
        ("#### -18", "18", False, False, False),
        ("10-18", "18", False, False, True),  # a minus between numbers is no sign; flexible reads -18
    ],
)
def test_each_metric_reads_what_its_definition_says(completion: str, gold: str, strict: bool, flexible: bool, numeric: bool) -> None:
    assert verdict(completion, gold) == {"strict": strict, "flexible": flexible, "numeric": numeric}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 72.0", Fraction(72)),
        ("#### $1,234.50", Fraction(2469, 2)),
        ("#### -$5", Fraction(-5)),
        ("#### $-5", Fraction(-5)),
        ("#### −5", Fraction(-5)),
        ("#### 2 1/2", Fraction(5, 2)),
        ("#### 2\\frac{1}{2}", Fraction(5, 2)),
        ("#### \\boxed{18}", Fraction(18)),
        ("#### \\$12{,}345", Fraction(12345)),
        ("#### 1.5e3", Fraction(1500)),
        ("#### 50%", Fraction(50)),
        ("#### .5", Fraction(1, 2)),
        ("#### 12,345,678", Fraction(12345678)),
        ("#### 1/0 so 4", Fraction(4)),  # no number behind the mark: the last one of all
        ("#### Step 1: add\nIt makes 18", Fraction(18)),  # a heading is no answer
        ("#### none\nThe answer is: 18 of 20", Fraction(18)),
        ("The answer is: 3\nNo. The answer is: $18\n in 2 hours", Fraction(18)),
        ("\\boxed{3} then \\boxed{\\frac{3}{4}}, 9 times", Fraction(3, 4)),
        ("\\boxed{18", Fraction(18)),
        ("they are 3, 4 and 5", Fraction(5)),
        ("from 5-10", Fraction(10)),
        ("x=-3", Fraction(-3)),
    ],
)
def test_numeric_reads_numbers_as_people_write_them(text: str, value: Fraction) -> None:
    number = answer_number(text)
    assert number is not None
    assert number.value == value


def test_the_marks_win_in_the_documented_order() -> None:
    texts = ["9", "\\boxed{8} 9", "The answer is: 7 \\boxed{8} 9", "#### 6\nThe answer is: 7 \\boxed{8} 9"]
    found = [answer_number(text) for text in texts]
    assert [number.value for number in found if number is not None] == [9, 8, 7, 6]


def test_extracted_text_reads_back_to_the_same_value() -> None:
    for text in ("#### $1,234.50", "#### -2 1/2", "#### 1/3", "#### .5", "#### 1.5e3"):
        number = answer_number(text)
        assert number is not None
        assert exact(number.text) == number.value


def test_a_run_of_ten_thousand_digits_is_no_answer_and_no_crash() -> None:
    assert verdict("#### " + "1" * 10_000, "1")["numeric"] is False
    assert verdict("1/" + "9" * 10_000 + " 18", "18")["numeric"] is True


@pytest.mark.parametrize("filler", ["1", "1 ", "1,", "1,111", "#### ", "-", "$", "\\boxed{", "1/", "1.", "\\frac{1}{"])
def test_a_long_completion_of_any_filler_is_judged(filler: str) -> None:
    verdict(filler * (40_000 // len(filler)), "18")


def test_a_gold_that_is_no_number_is_never_numerically_right() -> None:
    assert verdict("#### 18", "eighteen")["numeric"] is False
    assert exact("18 or 19") is None
    assert exact("about 18") is None


def test_numbers_come_from_the_left_with_their_places() -> None:
    text = spelled("a 1, b 2.5 and 3/4")
    assert [(number.text, text[number.start]) for number in numbers(text)] == [("1", "1"), ("2.5", "2"), ("3/4", "3")]


def test_a_row_becomes_question_answer_and_gold() -> None:
    example = TASK.example({"question": "How many?", "answer": "1+1=2\n#### 1,002"}, 7)
    assert (example.id, example.prompt, example.target, example.gold) == ("7", "How many?", "1+1=2\n#### 1,002", "1,002")
    assert example.plain == ("Question: How many?\nAnswer:", " 1+1=2\n#### 1,002")
    assert TASK.example({"id": "a", "question": "", "answer": "#### 1"}, 7).id == "a"


@pytest.mark.parametrize("row", [{"question": "q"}, {"question": "q", "answer": 3}, {"question": "q", "answer": "no mark"}])
def test_a_damaged_row_is_a_data_error_that_names_it(row: dict[str, object]) -> None:
    with pytest.raises(SokaError) as caught:
        TASK.example(row, 12)
    assert caught.value.exit_code == ExitCode.DATA
    assert "12" in str(caught.value)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("Two and two. The answer is 18.", True),
        ("The answer is 18.\nThe answer is 3.", True),  # the first one
        ("The answer is $18.", False),
        ("The answer is 18", False),  # the pattern's last character eats a digit
        ("The answer is: 18.", False),
        ("#### 18", False),
    ],
)
def test_the_harness_s_chain_of_thought_task_reads_its_own_phrase(completion: str, right: bool) -> None:
    judgement = TASK.judge(completion, Example("0", "", "", "18"), (), ("gsm8k_cot",))
    assert judgement.correct["gsm8k_cot"] is right


def test_readings_are_judged_only_where_they_are_asked_for() -> None:
    example = Example("0", "", "", "18")
    assert set(TASK.judge("The answer is: 18", example, ()).correct) == {"strict", "flexible", "numeric"}
    assert TASK.judge("The answer is: 17.6", example, (), ("metamath",)).correct["metamath"]
    assert not TASK.judge("#### 18", example, (), ("metamath",)).correct["metamath"]


def test_a_task_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SokaError) as caught:
        task_named("nothing")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "gsm8k" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1055)])
def test_every_gold_solution_is_right_by_all_metrics(split: str, count: int) -> None:
    path = shared_folder("data", "gsm8k", f"{split}.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    examples = [TASK.example(row, index) for index, row in enumerate(rows)]
    wrong = [example.id for example in examples if not all(verdict(example.target, example.gold).values())]
    bare = [example.id for example in examples if not verdict(f"It is {example.gold}", example.gold)["numeric"]]
    assert (len(examples), wrong, bare) == (count, [], [])
