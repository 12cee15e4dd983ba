from itertools import product

import pytest

from soka_cli.stages.paired import holm, paired, two_sided


@pytest.mark.parametrize(("better", "worse"), [(b, w) for b in range(5) for w in range(5) if b + w])
def test_the_chance_is_that_of_all_tosses_counted_one_by_one(better: int, worse: int) -> None:
    tosses = better + worse
    splits = [abs(2 * sum(heads) - tosses) for heads in product((0, 1), repeat=tosses)]
    assert two_sided(better, worse) == pytest.approx(sum(split >= abs(better - worse) for split in splits) / 2**tosses)


def test_no_differing_item_leaves_no_evidence() -> None:
    assert two_sided(0, 0) == 1.0


def test_thousands_of_items_neither_overflow_nor_lose_the_symmetry() -> None:
    assert 0 < two_sided(2600, 2400) == two_sided(2400, 2600) < 0.01
    assert two_sided(4000, 0) >= 0.0


def test_items_that_one_side_lacks_are_left_out() -> None:
    found = paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"b": 1.0, "c": 1.0, "d": 0.0})
    assert (found.items, found.better, found.worse, found.p) == (2, 0, 1, 1.0)


def test_swapping_the_sides_swaps_the_counts_and_keeps_the_chance() -> None:
    first, second = {str(i): float(i % 2) for i in range(9)}, {str(i): float(i % 3 == 0) for i in range(9)}
    ours, theirs = paired(first, second), paired(second, first)
    assert (ours.better, ours.worse, ours.p) == (theirs.worse, theirs.better, theirs.p)


def test_shares_of_several_samples_are_compared_item_by_item() -> None:
    found = paired({"a": 0.75, "b": 0.25}, {"a": 0.5, "b": 0.25})
    assert (found.better, found.worse) == (1, 0)


def test_holm_raises_every_chance_and_keeps_their_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
