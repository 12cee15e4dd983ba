"""Rules from spectrum to rank, on spectra whose answer is known."""

import random

import pytest
import torch

from soka_cli.kron import KronShape, RankChoice, RankRule, choose_rank, decompose_weight, restore
from soka_cli.kron.rank import READERS, Reading


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
    [
        {"rule": "knee"},
        {"elbow": "knee"},
        {"spectrum": "some"},
        {"tau": 0.0},
        {"tau": 1.1},
        {"max": 0},
        {"rule": "fixed"},
        {"rule": "fixed", "value": 0},
        {"value": 3},
        {"value": 0},
        {"noise": 0.1},
        {"rule": "gavish-donoho", "noise": 0.0},
        {"rule": "gavish-donoho", "noise": float("nan")},
        {"rule": "budget"},
        {"rule": "budget", "parameters": 0},
        {"rule": "budget", "parameters": 9, "floor": 17},
        {"rule": "budget", "parameters": 9, "floor": -1},
        {"parameters": 9},
        {"floor": 1},
    ],
)
def test_values_that_mean_nothing_are_refused(mapping: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rank\."):
        RankRule.from_mapping(mapping)


def test_the_rule_says_how_many_values_it_reads() -> None:
    assert RankRule().wanted_sigmas(4096) == 17
    assert RankRule("fixed", value=40).wanted_sigmas(4096) == 40
    assert RankRule(spectrum="full").wanted_sigmas(4096) == 4096
    assert RankRule().wanted_sigmas(9) == 9


# ---- elbows by ratio and by distance


def test_the_relative_gap_finds_the_floor_that_the_gap_overlooks() -> None:
    sigma = [100.0, 60.0, 36.0, 22.0, 2.0, 1.9, 1.8, 1.75, 1.7]
    assert choose(sigma, RankRule("elbow", elbow="gap", max=8), full_rank=40).rank == 1
    choice = choose(sigma, RankRule("elbow", elbow="relative-gap", max=8), full_rank=40)
    assert (choice.rank, choice.rank_elbow, choice.bound_by) == (4, 4, "elbow")


def test_the_relative_gap_of_a_geometric_spectrum_is_not_resolved() -> None:
    choice = choose([2.0**-k for k in range(17)], RankRule("elbow", elbow="relative-gap"), full_rank=40)
    assert (choice.rank, choice.bound_by) == (1, "unresolved")


def test_the_relative_gap_ends_at_the_rank_of_a_matrix_that_has_no_more() -> None:
    choice = choose([3.0, 2.0, 1.0, 0.0, 0.0], RankRule("elbow", elbow="relative-gap", max=4), bound=0.0, full_rank=40)
    assert (choice.rank, choice.bound_by) == (3, "elbow")


def test_a_small_drop_before_a_low_tail_is_no_relative_gap() -> None:
    assert choose([10.0, 4.0, 1.0, 1.0, 1.0], RankRule("elbow", elbow="relative-gap", max=4), full_rank=40).rank == 2


def test_the_chord_keeps_the_terms_before_the_tail() -> None:
    sigma = [10.0, 9.0, 8.0, 7.0, 1.0, 0.9, 0.8, 0.7, 0.6]
    assert choose(sigma, RankRule("elbow", elbow="chord", max=8), full_rank=40).rank == 4


def test_the_chord_keeps_a_plateau_whole() -> None:
    assert choose([5.0] * 16 + [1.0], RankRule("elbow", elbow="chord"), full_rank=64).rank == 16
    assert choose([3.0, 3.0, 3.0], RankRule("elbow", elbow="chord")).rank == 3


def test_the_chord_of_a_straight_line_is_not_resolved() -> None:
    choice = choose([float(value) for value in range(20, 3, -1)], RankRule("elbow", elbow="chord"), full_rank=40)
    assert (choice.rank, choice.bound_by) == (1, "unresolved")


@pytest.mark.parametrize("elbow", ["gap", "relative-gap", "chord"])
def test_an_elbow_is_the_same_at_every_scale(elbow: str) -> None:
    sigma = [9.0, 7.5, 5.0, 2.0, 1.5, 1.4, 1.2]
    ranks = {
        choose([scale * value for value in sigma], RankRule("elbow", elbow=elbow, max=6), bound=1e-12 * scale, full_rank=40).rank
        for scale in (1e-6, 1.0, 1e6)
    }
    assert len(ranks) == 1


# ---- Gavish-Donoho


def noisy(shape: KronShape, spikes: int, size: float, noise: float, seed: int = 0) -> torch.Tensor:
    """A weight whose R(W) is `spikes` terms of singular value size sqrt(larger side) noise, and noise."""
    generator = torch.Generator().manual_seed(seed)
    a, b = shape.m * shape.n, shape.p * shape.q
    left, _ = torch.linalg.qr(torch.randn(a, spikes, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(b, spikes, generator=generator))
    return restore(noise * (size * max(a, b) ** 0.5 * left @ right.T + torch.randn(a, b, generator=generator)), shape)


@pytest.mark.parametrize("shape", [KronShape(16, 12, 12, 16), KronShape(8, 8, 20, 20), KronShape(20, 20, 8, 8)], ids=str)
@pytest.mark.parametrize("rule", [RankRule("gavish-donoho"), RankRule("gavish-donoho", noise=0.1)], ids=["unknown", "known"])
def test_eight_spikes_over_noise_are_eight_by_gavish_donoho(shape: KronShape, rule: RankRule) -> None:
    choice = decompose_weight(noisy(shape, 8, 4.0, 0.1), shape, rule, seed=0).choice
    assert (choice.rank, choice.bound_by, choice.ranks["gavish-donoho"]) == (8, "gavish-donoho", 8)


def test_noise_alone_keeps_one_term_and_the_record_says_none() -> None:
    shape = KronShape(12, 12, 12, 12)
    choice = decompose_weight(noisy(shape, 1, 0.0, 0.1), shape, RankRule("gavish-donoho"), seed=0).choice
    assert (choice.rank, choice.bound_by, choice.ranks["gavish-donoho"]) == (1, "gavish-donoho", 0)


def test_max_binds_gavish_donoho_too() -> None:
    shape = KronShape(16, 12, 12, 16)
    for rule in (RankRule("gavish-donoho", max=3), RankRule("gavish-donoho", noise=0.1, max=3)):
        choice = decompose_weight(noisy(shape, 8, 4.0, 0.1), shape, rule, seed=0).choice
        assert (choice.rank, choice.bound_by) == (3, "max")


def test_the_threshold_of_known_noise_grows_with_it() -> None:
    sigma = [10.0, 5.0, 2.5, 1.25, 0.6]
    ranks = [choose(sigma, RankRule("gavish-donoho", noise=noise), full_rank=100).rank for noise in (0.01, 0.1, 0.3, 1.0)]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) > 2


def test_a_value_at_the_threshold_is_not_resolved() -> None:
    side, noise = 100, 0.1
    threshold = 4 / 3**0.5 * side**0.5 * noise
    choice = choose([5.0, threshold, 0.2], RankRule("gavish-donoho", noise=noise), bound=1e-6, full_rank=side)
    assert (choice.rank, choice.bound_by) == (1, "unresolved")


def test_an_unknown_noise_is_known_no_better_than_the_median() -> None:
    """2.858 times a median of 1 +- 0.1 lies on both sides of a value that is known exactly."""
    sigma = torch.tensor([9.0, 2.9, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    bound = torch.tensor([0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    choice = choose_rank(sigma, bound, float(sigma.square().sum()), RankRule("gavish-donoho"), KronShape(7, 1, 7, 1))
    assert (choice.rank, choice.bound_by) == (1, "unresolved")
    assert choose_rank(sigma, 0 * bound, 90.0, RankRule("gavish-donoho"), KronShape(7, 1, 7, 1)).rank == 2


# ---- the record


def test_the_record_says_what_every_rule_would_have_said() -> None:
    sigma = [5.0, 4.9, 4.8, 1.0, 0.9, 0.8]
    choice = choose(sigma, RankRule("fixed", value=2, spectrum="full"))
    assert choice.rank == 2
    assert set(choice.ranks) == {"energy", "gap", "relative-gap", "chord", "gavish-donoho"}
    assert (choice.ranks["energy"], choice.ranks["gap"], choice.ranks["chord"]) == (3, 3, 3)
    assert choice.ranks["gavish-donoho"] == 0
    assert choice.energy_computed == pytest.approx(1.0)


def test_what_the_computed_values_do_not_reach_is_none_beside_the_energy_they_hold() -> None:
    choice = choose([2.0] * 5, RankRule("min", max=4), full_rank=100, energy=400.0)
    assert (choice.ranks["energy"], choice.ranks["gavish-donoho"]) == (None, None)
    assert choice.energy_computed == pytest.approx(0.05)
    assert choose([2.0] * 5, RankRule("gavish-donoho", noise=1e-3, max=4), full_rank=100, energy=400.0).ranks["gavish-donoho"] is None


def test_the_rules_of_a_full_spectrum_and_of_an_unknown_noise_read_all_values() -> None:
    assert RankRule("gavish-donoho").wanted_sigmas(4096) == 4096
    assert RankRule("gavish-donoho", noise=0.1).wanted_sigmas(4096) == 17
    assert RankRule("budget", parameters=10, max=4).wanted_sigmas(4096) == 5


def test_a_rule_that_was_added_is_asked_bounded_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "two", lambda spectrum: Reading(2, 2 + int(spectrum.error_bound[0] > 0.1)))
    sigma = [3.0, 2.0, 1.0, 0.5]
    choices = [choose(sigma, RankRule("two", max=most), bound=bound, full_rank=9) for most, bound in ((4, 1e-9), (1, 1e-9), (4, 0.2))]
    assert [(one.rank, one.bound_by, one.ranks["two"]) for one in choices] == [(2, "two", 2), (1, "max", 2), (2, "unresolved", 2)]
    with pytest.raises(ValueError, match=r"rank.rule 'three' is none of: .*two"):
        RankRule("three")


# ---- bounds


RULES = [
    RankRule("min", tau=0.5, max=8),
    RankRule("energy", tau=0.7, max=8),
    *(RankRule("elbow", elbow=elbow, max=8) for elbow in ("gap", "relative-gap", "chord")),
    *(RankRule("elbow", elbow=elbow, max=8, spectrum="full") for elbow in ("gap", "relative-gap", "chord")),
    RankRule("gavish-donoho", max=8),
    RankRule("gavish-donoho", noise=0.15, max=8),
]


def random_spectrum(draw: random.Random, size: int) -> torch.Tensor:
    """Flat, decaying, stepped or spiked."""
    kind = draw.choice(["flat", "power", "steps", "spikes"])
    values = {
        "flat": lambda k: draw.uniform(1.0, 1.2),
        "power": lambda k: 3.0 * (k + 1) ** -draw.uniform(0.4, 0.6),
        "steps": lambda k: float(3 - 2 * k // size) + draw.uniform(0.0, 0.05),
        "spikes": lambda k: draw.uniform(2.0, 6.0) if k < 5 else draw.uniform(0.2, 0.9),
    }[kind]
    return torch.tensor([values(k) for k in range(size)], dtype=torch.float64).sort(descending=True).values


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_resolved_rank_is_that_of_every_spectrum_within_the_bounds(rule: RankRule) -> None:
    """Moved by random errors no larger than the bounds, and by the largest of random signs; else it is unresolved."""
    draw, size = random.Random(0), 24
    shape = KronShape(size, 1, size, 1)
    resolved = 0
    for _ in range(60):
        sigma = random_spectrum(draw, size)
        bound = torch.tensor([draw.choice([1e-3, 1e-2, 4e-2]) for _ in range(size)], dtype=torch.float64)
        total = float(sigma.square().sum())
        count = rule.wanted_sigmas(size)
        choice = choose_rank(sigma[:count], bound[:count], total, rule, shape)
        assert rule.is_settled(sigma[:count], bound[:count], total, shape) == (choice.bound_by != "unresolved")
        if choice.bound_by == "unresolved":
            continue
        resolved += 1
        for trial in range(20):
            errors = [draw.choice([-1.0, 1.0]) if trial % 2 else draw.uniform(-1.0, 1.0) for _ in range(size)]
            true = (sigma + bound * torch.tensor(errors, dtype=torch.float64)).clamp(min=0.0)
            if bool((true[:-1] < true[1:]).any()):
                continue
            exact = choose_rank(true[:count], torch.full_like(true[:count], 1e-13), total, rule, shape)
            assert exact.rank == choice.rank
    assert resolved > 5


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_smallest_rank_within_the_bounds_is_taken(rule: RankRule) -> None:
    draw, size = random.Random(1), 24
    shape = KronShape(size, 1, size, 1)
    for _ in range(60):
        sigma = random_spectrum(draw, size)
        bound = torch.full_like(sigma, draw.choice([1e-3, 5e-2]))
        total, count = float(sigma.square().sum()), rule.wanted_sigmas(size)
        blurred = choose_rank(sigma[:count], bound[:count], total, rule, shape)
        sharp = choose_rank(sigma[:count], torch.full_like(sigma[:count], 1e-13), total, rule, shape)
        assert blurred.rank <= sharp.rank


@pytest.mark.parametrize("rule", [RankRule("fixed", value=3), RankRule("budget", parameters=100, max=5)], ids=str)
def test_rules_that_read_no_gap_are_settled_by_any_bounds(rule: RankRule) -> None:
    sigma = torch.ones(9, dtype=torch.float64)
    assert rule.is_settled(sigma, torch.full_like(sigma, 10.0), 9.0, KronShape(9, 1, 9, 1))
    assert not RankRule("elbow", max=8).is_settled(sigma, torch.full_like(sigma, 10.0), 9.0, KronShape(9, 1, 9, 1))
