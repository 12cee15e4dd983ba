"""Where a worked text's answer is found."""

import pytest

from soka_cli.tasks.latex_answer import brace_pairs, final_answer, last_box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1} or rather \fbox{2}", "2"),
        (r"$\boxed 5$", "5"),
        (r"our answer is $\boxed 2.$", "2"),
        (r"\boxed 12", "12"),
        (r"\boxed {17}.$$- OR -", "17"),
        (r"\boxed\frac12$ and more", r"\frac12"),
        (r"\boxed{3} and \boxed{4", "3"),  # the last one is never closed
        (r"\boxed{3} and \boxed{}", "3"),
        (r"\boxed{}", ""),  # two gold answers are empty
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\text{}} } 3", r"\text{}"),
        (r"\boxedish{3}", None),
        ("no box", None),
        (r"\boxed{3", None),
    ],
)
def test_the_last_closed_box_holds_the_answer(text: str, answer: str | None) -> None:
    assert last_box(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is: 5", "5"),
        ("The answer is: 3. No. The answer is: 5.", "5"),
        ("The answer is: 3.5.", "3.5"),
        ("The answer is: 5. So it is.", "5"),
        ("the answer is $\\frac12$.", r"\frac12"),
        ("**The answer is: 5**", "5"),
        ("The answer is: \\[ 5 \\]", "5"),
        ("The answer is: \\(5\\)\nDone", "5"),
        ("The answer is $x=1$ and $x=2$.", "$x=1$ and $x=2$"),
        ("The answer is $x=1.$ Then more.", "$x=1.$ Then more"),
        ("The answer is: \\$5.50.", "\\$5.50"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        ("Final Answer: The final answer is $7$. I hope it is correct.\n\nProblem: more", "7"),
        ("The final answer is: 7", "7"),
        ("The answer is: 4\nFinal Answer: The final answer is $7$. I hope it is correct.", "4"),  # the first phrase wins
        ("The answer is: ", None),
        ("It is 5", None),
    ],
)
def test_behind_a_phrase_the_answer_ends_with_its_sentence(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_a_box_wins_over_every_phrase() -> None:
    assert final_answer(r"\boxed{1} The answer is: 2") == "1"


def test_braces_pair_as_they_nest_and_escaped_ones_are_characters() -> None:
    assert sorted(brace_pairs(r"{a{b}\{c}}")) == [(0, 8), (2, 4)]


@pytest.mark.parametrize("filler", ["\\boxed{", "\\boxed 1", "The answer is: ", "$", "{", "}", "\\(", "$a.$ ", "The answer is: \\["])
def test_a_long_completion_of_any_filler_is_read(filler: str) -> None:
    final_answer("The answer is: " + filler * (200_000 // len(filler)))
