"""lm-evaluation-harness's readings of MATH answers."""

import pytest

from soka_cli.tasks.harness_math import minerva_equivalent, minerva_normal, span_equivalent
from soka_cli.tasks.symbolic import WORKER

HOPED = "Final Answer: The final answer is {}. I hope it is correct."


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        ("5", "5", True),
        ("it is $5$", "5", True),
        ("$x$ is $5$", "5", False),  # from the first dollar sign to the last
        ("it costs $5", "5", False),
        ("it is $5$.\n", "5", True),
        (r"\boxed{5}", "5", False),
        (r"$\frac12$", r"\frac{1}{2}", True),
        ("x / 2", "x/2", False),
    ],
)
def test_hendrycks_math_reads_between_the_outermost_dollar_signs(completion: str, gold: str, right: bool) -> None:
    assert span_equivalent(completion, gold) is right


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        (HOPED.format("$5$"), "5", True),
        (HOPED.format("$5$") + "\n" + HOPED.format("$6$"), "5", True),  # the first one
        ("Final Answer: The final answer is $5$. ", "5", True),
        ("Final Answer: The final answer is $5$.", "5", False),
        ("Final Answer: The final answer is $5$", "5", False),
        ("The answer is: 5", "5", False),
        (r"\boxed{5}", "5", False),
        (HOPED.format(r"$\frac{1}{2}$"), "0.5", True),
        (HOPED.format(r"$\frac12$"), r"\frac{1}{2}", True),
        (HOPED.format("$x = 5$"), "5", True),
        (HOPED.format("5 feet"), r"5\text{ feet}", True),
        (HOPED.format("$(1,2)$"), "(1,2)", True),
        (HOPED.format("$(1, 2)$"), "(1,2)", True),
        (HOPED.format("$(2,1)$"), "(1,2)", False),
        (HOPED.format("6"), "5", False),
        (HOPED.format("[invalidanswer]"), "5", False),
    ],
)
def test_minerva_math_reads_behind_its_phrase(completion: str, gold: str, right: bool) -> None:
    assert minerva_equivalent(completion, gold) is right


def test_two_whole_numbers_are_compared_without_a_process() -> None:
    WORKER.close()
    assert not minerva_equivalent(HOPED.format("6"), "5")
    assert WORKER.process is None


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("x=y=5", "5"),
        (r"2\pi cm", r"2\pi"),
        (r"5\text{ feet}", "5"),
        (r"\left(1,2\right)", r"\left(1,2\right)"),  # the ft of \left is no foot
        ("100,000", "100000"),
        ("0,1", "0,1"),
        (r"\fracab", r"\frac{a}{b}"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\sqrt[3]2", r"\sqrt[3]{2}"),
        (r"\textbf{A}", "A"),
        (r"\boxed{5}", "5"),
        ("so $5$ it is", "5"),
        (r"30^\circ", "30"),
    ],
)
def test_minervas_normalisation(answer: str, wanted: str) -> None:
    assert minerva_normal(answer) == wanted
