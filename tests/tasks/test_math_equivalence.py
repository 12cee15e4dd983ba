"""The string equality of MATH's authors, faults and all."""

import pytest

from soka_cli.tasks.math_equivalence import equivalent, normal


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\nb", "ab"),
        (r"10,\!000", "10,000"),
        (r"a\\b", r"a\b"),
        (r"\tfrac{1}{2}", r"\frac{1}{2}"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\$5", "5"),
        (r"50\%", "50"),
        ("50%", "50%"),  # only the escaped sign goes
        (r"5\text{ cm}", "5"),
        (r"5 \text{ cm} ^2", "5"),  # all that follows the unit goes with it
        (r"5\text{cm}", r"5\text{cm}"),
        (".5", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        ("0.50", "0.50"),  # and only 0.5
        (".25", "0.25"),
        ("x = .25", "0.25"),
        ("{.25}", "{0.25}"),
        ("x=5", "5"),
        ("k = 5", "5"),
        ("abc=5", "abc=5"),
        ("x=y=5", "x=y=5"),
        ("=5", "5"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\sqrt{3}", r"\sqrt{3}"),
        (r"\sqrt 3", r"\sqrt{}3"),  # the space is taken for the radicand
        (r"\sqrt12", r"\sqrt{1}2"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\frac{72}1", r"\frac{72}1"),
        (r"\frac ab", r"\frac{a}{b}"),
        (r"\frac123", r"\frac{1}{2}3"),
        (r"2 + \frac1", r"2+\frac1"),
        ("3/4", r"\frac{3}{4}"),
        ("-3/4", r"\frac{-3}{4}"),
        ("03/4", "03/4"),
        ("1/2/3", "1/2/3"),
        ("x/2", "x/2"),
        ("", ""),
        (r"\left\right", ""),
    ],
)
def test_each_step_of_the_normalisation(text: str, wanted: str) -> None:
    assert normal(text) == wanted


def test_reordering_and_algebra_are_not_seen() -> None:
    for first, second in ((r"\sqrt{12}", r"2\sqrt3"), ("0.25", r"\frac14"), ("x+1", "1+x"), ("1,2", "2,1")):
        assert not equivalent(first, second)


def test_two_absent_answers_are_equal_and_one_is_not() -> None:
    assert equivalent(None, None)
    assert not equivalent(None, "5")
    assert not equivalent("", None)


@pytest.mark.parametrize("broken", [r"5\text{ m}\text{ s}", r"\sqrt", r"\frac", r"1+\sqrt\sqrt2", r"\frac\frac12"])
def test_what_the_original_breaks_down_on_is_compared_as_it_is(broken: str) -> None:
    with pytest.raises(ValueError):
        normal(broken)
    assert equivalent(broken, broken)
    assert not equivalent(broken, broken + " ")


def test_two_units_hide_nothing_but_one_hides_all_that_follows() -> None:
    assert equivalent(r"5\text{ hours}", r"5\text{ minutes}")
    assert not equivalent(r"5\text{ h}\text{ m}", r"5\text{ m}\text{ h}")


def test_the_copies_in_other_harnesses_break_down_on_a_slash_between_words() -> None:
    assert equivalent("x / 2", "x/2")
    assert not equivalent("x / 2", "x/2", any_slash=False)
    assert equivalent("1/2", r"\frac{1}{2}", any_slash=False)


def test_numbers_too_long_for_python_are_no_crash() -> None:
    long = "1" * 5000 + "/3"
    assert equivalent(long, f" {long}")
