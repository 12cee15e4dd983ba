"""Rules from spectrum to rank, on spectra whose answer is known."""

import pytest
import torch

from soka_cli.kron import KronShape, RankChoice, RankRule, choose_rank


def choose(
    sigma: list[float], rule: RankRule, *, bound: float = 1e-12, full_rank: int | None = None, energy: float | None = None
) -> RankChoice:
    values = torch.tensor(sigma, dtype=torch.float64)
    total = float(values.square().sum()) if energy is None else energy
    side = full_rank or len(sigma)  # of R(W), square
    return choose_rank(values, torch.full_like(values, bound), total, rule, KronShape(side, 1, side, 1))


def test_a_convex_spectrum_has_its_gap_elbow_at_one() -> None:
    choice = choose([1.0 / k for k in range(1, 18)], RankRule("elbow"), full_rank=64)
    assert (choice.rank, choice.rank_elbow, choice.bound_by) == (1, 1, "elbow")


def test_a_plateau_of_16_has_its_gap_elbow_at_16() -> None:
    choice = choose([5.0] * 16 + [1.0], RankRule("elbow"), full_rank=64)
    assert (choice.rank, choice.bound_by) == (16, "elbow")


def test_energy_keeps_the_fewest_terms_that_reach_tau() -> None:
    sigma = [4.0, 2.0, 2.0, 1.0]  # shares 16, 20, 24, 25 of 25
    assert [choose(sigma, RankRule("energy", tau=tau)).rank for tau in (0.5, 0.7, 0.9, 0.97, 1.0)] == [1, 2, 3, 4, 4]
    choice = choose(sigma, RankRule("energy", tau=0.9))
    assert choice.bound_by == "energy"
    assert choice.energy_kept == pytest.approx(24 / 25)


def test_energy_beyond_the_computed_spectrum_is_null_and_max_binds() -> None:
    choice = choose([1.0] * 5, RankRule("energy", max=4), full_rank=100, energy=100.0)
    assert (choice.rank, choice.rank_energy, choice.bound_by) == (4, None, "max")
    assert choice.energy_kept == pytest.approx(0.04)


def test_min_takes_the_smallest_and_names_it() -> None:
    plateau = [5.0] * 3 + [1.0] * 14
    assert (choose(plateau, RankRule("min", tau=0.5)).rank, choose(plateau, RankRule("min", tau=0.5)).bound_by) == (2, "energy")
    assert (choose(plateau, RankRule("min", tau=0.99)).rank, choose(plateau, RankRule("min", tau=0.99)).bound_by) == (3, "elbow")
    assert choose([3.0, 2.0, 0.5], RankRule("min", tau=0.99, max=1), full_rank=9, energy=50.0).rank == 1


def test_max_binds_where_energy_and_elbow_want_more() -> None:
    choice = choose([5.0] * 10 + [1.0], RankRule("min", tau=0.99, max=4, spectrum="full"))
    assert (choice.rank, choice.rank_elbow, choice.bound_by) == (4, 10, "max")


def test_the_elbow_reads_no_more_than_max_plus_one_values_unless_told() -> None:
    sigma = [10.0, 9.0, 8.5, 8.2, 1.0]
    assert choose(sigma, RankRule("elbow", max=2), full_rank=40).rank_elbow == 1
    assert choose(sigma, RankRule("elbow", max=4), full_rank=40).rank_elbow == 4
    assert choose(sigma, RankRule("elbow", max=2, spectrum="full")).rank_elbow == 4


def test_after_the_last_singular_value_comes_zero() -> None:
    assert choose([3.0, 3.0, 3.0], RankRule("elbow")).rank == 3
    assert choose([2.0], RankRule()).rank == 1


def test_gaps_within_the_bounds_take_the_smaller_rank_and_say_so() -> None:
    sigma = [10.0, 7.0, 6.0, 2.9, 2.0]
    sharp = choose(sigma, RankRule("elbow", max=4), bound=0.01, full_rank=40)
    blurred = choose(sigma, RankRule("elbow", max=4), bound=0.03, full_rank=40)
    assert (sharp.rank, sharp.bound_by) == (3, "elbow")
    assert (blurred.rank, blurred.bound_by) == (1, "unresolved")


def test_what_does_not_change_the_rank_is_not_called_unresolved() -> None:
    choice = choose([10.0, 7.0, 6.0, 2.9, 2.0], RankRule("min", max=4, tau=0.4), bound=0.03, full_rank=40)
    assert (choice.rank, choice.bound_by) == (1, "energy")


def test_an_energy_threshold_within_the_bounds_takes_the_smaller_rank() -> None:
    choice = choose([3.0, 1.0], RankRule("energy", tau=0.9), bound=1e-6)
    assert (choice.rank, choice.bound_by) == (1, "unresolved")


def test_fixed_reads_no_gap() -> None:
    choice = choose([1.0] * 17, RankRule("fixed", value=5), bound=0.5, full_rank=40)
    assert (choice.rank, choice.bound_by) == (5, "fixed")


def test_a_rank_beyond_the_last_term_is_cut_and_named() -> None:
    assert choose([3.0, 2.0], RankRule("fixed", value=5)).bound_by == "full-rank"
    assert choose([3.0, 2.0], RankRule("fixed", value=2)).bound_by == "fixed"
    capped = choose([1.0, 1.0], RankRule("energy", tau=1.0), energy=2.5)
    assert (capped.rank, capped.bound_by) == (2, "full-rank")


def test_a_zero_spectrum_keeps_one_term_and_loses_nothing() -> None:
    choice = choose([0.0, 0.0, 0.0], RankRule())
    assert (choice.rank, choice.energy_kept, choice.bound_by) == (1, 1.0, "energy")


def test_a_recipes_mapping_makes_the_rule() -> None:
    assert RankRule.from_mapping({"rule": "fixed", "value": 4}) == RankRule("fixed", value=4)
    assert RankRule.from_mapping({"rule": "min", "tau": 0.9, "elbow": "gap", "max": 16}) == RankRule()
    with pytest.raises(ValueError, match=r"rank has no terms; it has rule, tau, elbow, max, value, noise, parameters, floor, spectrum"):
        RankRule.from_mapping({"rule": "fixed", "terms": 3})


@pytest.mark.parametrize(
    "mapping",
    [{"rule": "budget"}, {"elbow": "knee"}, {"spectrum": "some"}, {"tau": 0.0}, {"tau": 1.1}, {"max": 0}, {"rule": "fixed"}, {"value": 3}],
)
def test_values_that_mean_nothing_are_refused(mapping: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rank\."):
        RankRule.from_mapping(mapping)


def test_the_rule_says_how_many_values_it_reads() -> None:
    assert RankRule().wanted_sigmas(4096) == 17
    assert RankRule("fixed", value=40).wanted_sigmas(4096) == 40
    assert RankRule(spectrum="full").wanted_sigmas(4096) == 4096
    assert RankRule().wanted_sigmas(9) == 9
