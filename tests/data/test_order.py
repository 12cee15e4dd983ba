"""The order of rows: every one in its turn, in its share, and the same for the same seed."""

from collections import Counter
from itertools import pairwise

import pytest

from soka_cli.data.order import Mixture, ReadingOrder
from soka_cli.data.pack import pack


def sources_of(mixture: Mixture, order: list[int]) -> Counter[int]:
    ends = [sum(mixture.counts[: index + 1]) for index in range(len(mixture.counts))]
    return Counter(next(source for source, end in enumerate(ends) if row < end) for row in order)


@pytest.mark.parametrize("counts", [(7,), (3, 4), (1, 1, 5)])
def test_without_weights_a_pass_reads_every_row_once(counts: tuple[int, ...]) -> None:
    mixture = Mixture(counts, seed=3)
    for number in range(3):
        assert sorted(mixture.order(number)) == list(range(7))


def test_orders_depend_on_seed_and_pass_alone() -> None:
    mixture = Mixture((40, 10), (1.0, 1.0), seed=1)
    assert mixture.order(2) == Mixture((40, 10), (1.0, 1.0), seed=1).order(2)
    assert mixture.order(2) != mixture.order(3)
    assert mixture.order(2) != Mixture((40, 10), (1.0, 1.0), seed=2).order(2)


def test_an_order_is_the_same_on_every_machine() -> None:
    assert Mixture((8,), seed=7).order(0) == [6, 2, 3, 0, 7, 4, 1, 5]
    assert Mixture((5, 3), (2.0, 1.0), seed=7).order(1) == [0, 1, 5, 7, 6, 2, 4, 3]


def test_a_source_of_weight_two_has_twice_the_rows_of_one_of_weight_one() -> None:
    mixture = Mixture((30, 60), (2.0, 1.0), seed=0)
    for number in range(3):
        assert sources_of(mixture, mixture.order(number)) == {0: 60, 1: 30}


def test_shares_that_do_not_divide_add_up_to_the_pass() -> None:
    mixture = Mixture((5, 5, 1), (1.0, 1.0, 1.0))
    assert sum(mixture.shares()) == 11 and max(mixture.shares()) - min(mixture.shares()) == 1


def test_no_row_is_read_again_before_all_of_its_source_were() -> None:
    mixture = Mixture((4, 10), (1.0, 1.0), seed=5)
    read = [row for number in range(10) for row in mixture.order(number)]
    counts = Counter(read)
    assert {counts[row] for row in range(4)} <= {17, 18} and {counts[row] for row in range(4, 14)} == {7}
    first_pass = [row for row in mixture.order(0) if row >= 4]
    second_pass = [row for row in mixture.order(1) if row >= 4]
    assert len(set(first_pass)) == 7 and set(range(4, 14)) - set(first_pass) <= set(second_pass)


def test_every_row_is_in_one_pack_and_none_is_too_long() -> None:
    lengths = [3 + 7 * index % 29 for index in range(100)]
    packs = pack(range(100), lengths, 32)
    assert sorted(row for rows in packs for row in rows) == list(range(100))
    assert max(sum(lengths[row] for row in rows) for rows in packs) <= 32


def test_packs_are_as_few_as_the_tokens_allow() -> None:
    lengths = [5, 5, 6, 4, 3, 7, 10, 2, 8]
    assert len(pack(range(9), lengths, 10)) == 5 == sum(lengths) // 10


def test_another_order_makes_other_packs() -> None:
    lengths = [4, 4, 4, 4, 3, 3, 3, 3]
    groups = {tuple(sorted(map(tuple, pack(order, lengths, 7)))) for order in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 2, 1, 0, 4, 5, 6, 7])}
    assert len(groups) == 2


LENGTHS = [3, 9, 4, 7, 2, 8, 5, 6, 1, 10]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["rows", "packs"])
def test_items_follow_pass_after_pass(lengths: list[int] | None) -> None:
    order = ReadingOrder(Mixture((10,), seed=2), lengths, 12)
    items = [item for number in range(4) for item in order.pass_items(number)]
    assert [order[index] for index in range(len(items))] == items
    assert order.items(4) == len(items)
    for number in range(4):
        assert sorted(row for item in order.pass_items(number) for row in item) == list(range(10))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["rows", "packs"])
def test_passes_and_items_are_each_others_inverse(lengths: list[int] | None) -> None:
    order = ReadingOrder(Mixture((10,), seed=2), lengths, 12)
    assert [order.passes(order.items(number)) for number in range(5)] == [0, 1, 2, 3, 4]
    assert all(later > earlier for earlier, later in pairwise(order.passes(item) for item in range(40)))


def test_a_part_of_a_pass_is_rounded_up_in_rows_and_not_by_floating_point() -> None:
    order = ReadingOrder(Mixture((10,)))
    assert [order.items(passes) for passes in (1.1, 0.7, 2.05, 1.0)] == [11, 7, 21, 10]
