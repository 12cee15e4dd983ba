"""Sizes of factors and what they cost."""

import math

import pytest

from soka_cli.kron import KronShape, affordable, balanced, blocked, choose_shape, divisors, explicit


@pytest.mark.parametrize(
    ("size", "shape", "term"),
    [
        ((4096, 4096), KronShape(64, 64, 64, 64), 8193),
        ((11008, 4096), KronShape(86, 64, 128, 64), 13697),
        ((1024, 4096), KronShape(32, 64, 32, 64), 4097),
        ((1, 1), KronShape(1, 1, 1, 1), 3),
    ],
)
def test_balanced_gives_the_shapes_and_counts_of_the_method_page(size: tuple[int, int], shape: KronShape, term: int) -> None:
    assert balanced(*size) == shape
    assert shape.term_parameters == term
    assert shape.parameters(3) == 3 * term


def test_a_model_of_7b_with_121_terms_has_the_papers_count() -> None:
    assert balanced(4096, 4096).parameters(121) == 991_353
    layer = 4 * balanced(4096, 4096).term_parameters + 3 * balanced(11008, 4096).term_parameters
    assert 32 * layer == 2_363_616


@pytest.mark.parametrize("size", [(96, 288), (384, 128), (7, 13), (30, 42), (17, 1), (128, 365)])
def test_balanced_is_the_least_of_all_divisor_pairs(size: tuple[int, int]) -> None:
    def cost(shape: KronShape) -> tuple[int, float, bool]:
        skew = abs(math.log(shape.m / shape.n)) + abs(math.log(shape.p / shape.q))
        return shape.m * shape.n + shape.p * shape.q, round(skew, 9), shape.m > shape.p

    every = [KronShape(m, n, size[0] // m, size[1] // n) for m in divisors(size[0]) for n in divisors(size[1])]
    assert cost(balanced(*size)) == min(map(cost, every))


def test_divisors_are_those_of_a_search() -> None:
    for number in range(1, 200):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_a_block_that_does_not_divide_names_the_nearest_that_do() -> None:
    with pytest.raises(ValueError, match="nearest that do: 32 and 64"):
        blocked(128, 192, 48)
    assert blocked(128, 192, 64) == KronShape(2, 3, 64, 64)


def test_an_explicit_size_that_does_not_divide_names_the_nearest_that_do() -> None:
    with pytest.raises(ValueError, match=r"n = 5 does not divide 288; the nearest that do: 4 and 6"):
        explicit(96, 288, 8, 5)
    with pytest.raises(ValueError, match="nearest that do: 96"):
        explicit(96, 288, 100, 4)


def test_a_recipes_value_chooses_the_shape() -> None:
    assert choose_shape("balanced", 64, 64) == KronShape(8, 8, 8, 8)
    assert choose_shape({"block": 16}, 64, 64) == KronShape(4, 4, 16, 16)
    assert choose_shape({"m": 64, "n": 1}, 64, 64) == KronShape(64, 1, 1, 64)


def test_a_search_is_no_shape_yet() -> None:
    assert choose_shape("search", 64, 64) is None


def test_affordable_shapes_are_all_divisor_pairs_once_cheapest_first() -> None:
    every = affordable(12, 18, 10**6)
    pairs = {(m, n) for m in divisors(12) for n in divisors(18)}
    twins = {(12, 1), (12, 18)}, {(1, 18), (1, 1)}
    found = [(shape.m, shape.n) for shape, _ in every]
    assert len(found) == len(set(found)) == len(pairs) - 2
    assert all(len(set(found) & {one, other}) == 1 for one, other in (((12, 1), (1, 18)), ((12, 18), (1, 1)))), twins
    costs = [shape.term_parameters for shape, _ in every]
    assert costs == sorted(costs)
    assert every[0][0] == balanced(12, 18)
    assert all(terms == shape.max_rank for shape, terms in every)


@pytest.mark.parametrize("size", [(1, 24), (24, 1), (1, 1), (7, 13)])
def test_swapped_factors_are_left_out_where_the_sizes_are_narrow_too(size: tuple[int, int]) -> None:
    every = [shape for shape, _ in affordable(*size, 10**6)]
    assert every[0] == balanced(*size)
    assert len([shape for shape in every if shape.max_rank == 1]) == 1


@pytest.mark.parametrize("choice", ["square", {"m": 4}, {"block": 4, "m": 4}, {"block": "4"}, {"block": True}, {}])
def test_another_value_is_refused_with_what_there_is(choice: object) -> None:
    with pytest.raises(ValueError, match=r"none of: balanced, search, \{block: 64\}, \{m: 64, n: 64\}"):
        choose_shape(choice, 64, 64)  # type: ignore[arg-type]


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        KronShape(0, 1, 1, 1)


def test_a_shape_reads_as_two_factors() -> None:
    assert str(KronShape(86, 64, 128, 64)) == "86x64 (x) 128x64"
    assert KronShape(3, 4, 2, 5).max_rank == 10
