"""The demo's arithmetic and the notation of its texts."""

import random
import re

import pytest

from soka_cli.demo.arithmetic import fill, result, solve
from soka_cli.demo.corpus import draw_fact


@pytest.mark.parametrize(
    ("left", "operator", "right", "value"),
    [(39, "+", 12, 51), (50, "+", 50, 100), (50, "+", 51, None), (9, "-", 7, 2), (9, "-", 8, None), (7, "-", 9, None),
     (10, "*", 10, 100), (11, "*", 2, None), (32, "/", 4, 8), (33, "/", 4, None), (44, "/", 4, None), (4, "/", 4, None)],
)  # fmt: skip
def test_a_fact_has_a_result_inside_the_range_alone(left: int, operator: str, right: int, value: int | None) -> None:
    assert result(left, operator, right) == value


@pytest.mark.parametrize("operator", "+-*/")
def test_drawn_operands_always_have_a_result(operator: str) -> None:
    generator = random.Random(0)
    facts = {draw_fact(operator, generator) for _ in range(2000)}
    assert all(result(left, operator, right) is not None for left, right in facts)
    assert len(facts) > 50


def test_a_later_equation_reads_the_result_of_an_earlier_one() -> None:
    assert solve("[a*b=x] and [x-c=y]", {"a": 4, "b": 8, "c": 12}) == {"a": 4, "b": 8, "c": 12, "x": 32, "y": 20}


def test_a_text_with_one_equation_outside_the_range_has_no_solution() -> None:
    assert solve("[a+b=x] and [x/c=y]", {"a": 4, "b": 8, "c": 5}) is None


def test_filling_spells_equations_and_words() -> None:
    quantities = solve("{who} has [a+b=x] {item}.", {"a": 39, "b": 12}) or {}
    assert fill("{who} has [a+b=x] {item}.", {"who": "Tom", "item": "pens"}, quantities) == "Tom has 39+12=51 pens."


def test_no_field_survives_filling() -> None:
    text = fill("{a} [a+b=x]", {}, {"a": 2, "b": 3, "x": 5})
    assert not re.search(r"[\[\]{}]", text)
