"""Answers as MetaMath's and PiSSA's scripts read them."""

import pytest

from soka_cli.tasks.metamath import phrased_equal, rounded, rounded_equal


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The answer is: 72", 72),
        ("The answer is: 3\nThe answer is: 72.", 72),
        ("The answer is: $1,234", 1234),
        ("The answer is: 71.6", 72),
        ("The answer is: 71.5", 72),
        ("The answer is: 72.5", 72),  # halves go to the even neighbour
        ("The answer is: 1/2", 0),
        ("The answer is: 3/2", 2),
        ("The answer is: 7/0", 7),
        ("The answer is: -5", -5),
        ("The answer is: 12,345,678", 12345),
        ("The answer is: .6", 1),
        ("The answer is: x = 5 of 9", 5),
        ("The answer is: /5", None),
        ("The answer is: none", None),
        ("The answer is 72", None),  # no colon, no answer
        ("The answer is:72", None),
        ("#### 72", None),
        (r"\boxed{72}", None),
        ("", None),
    ],
)
def test_the_first_number_behind_the_last_phrase_is_rounded(completion: str, number: int | None) -> None:
    assert rounded(completion) == number


def test_rounding_scores_what_is_not_the_answer() -> None:
    assert rounded_equal("The answer is: 71.6", "72")
    assert rounded_equal("The answer is: 1/2", "0")
    assert rounded_equal("The answer is: 1234", "1,234")
    assert not rounded_equal("The answer is: 71.4", "72")


@pytest.mark.parametrize(
    "text", ["The answer is: " + "9" * 400, f"The answer is: {'9' * 400}/3", "The answer is: 1/00", "The answer is: 5"]
)
def test_what_crashes_the_scripts_is_not_right(text: str) -> None:
    assert not rounded_equal(text, "seven")
    assert not rounded_equal(text, "1")


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        (r"The answer is: \frac12", r"\frac{1}{2}", True),
        ("The answer is: \\frac12.\nMore words.", r"\frac{1}{2}", True),
        ("The answer is: 5. More words.", "5", False),  # a full stop ends it at a line's end only
        ("The answer is: 5.", "5", True),
        ("The answer is: 1.\nThe answer is: 5", "5", True),
        (r"\boxed{5}", "5", False),
        (r"\boxed{5}. The answer is: 6", "5", False),
        ("The answer is: $5$", "5", False),  # dollar signs stay
        ("The answer is: x / 2", "x/2", False),
    ],
)
def test_math_is_read_behind_the_phrase_and_nowhere_else(completion: str, gold: str, right: bool) -> None:
    assert phrased_equal(completion, gold) is right
