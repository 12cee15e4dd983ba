"""The shape search: what wins is what an exact SVD of every divisor pair would have picked."""

import pytest
import torch

from soka_cli.kron import (
    KronShape,
    RankRule,
    ShapeCandidate,
    ShapeSearch,
    affordable,
    balanced,
    divisors,
    kron_dense,
    rearrange,
    search,
    search_budget,
    search_shape,
)


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def kronecker_sum(shape: KronShape, terms: int, seed: int = 0) -> torch.Tensor:
    """`terms` Kronecker products of about equal norm."""
    left, right = drawn(terms, shape.m, shape.n, seed=seed), drawn(terms, shape.p, shape.q, seed=seed + 1)
    return kron_dense(left, right, torch.ones(terms))


def exact_energy(weight: torch.Tensor, shape: KronShape, terms: int) -> float:
    return float(torch.linalg.svdvals(rearrange(weight.double(), shape))[:terms].square().sum())


def energies(found: ShapeSearch) -> dict[KronShape, float]:
    return {one.shape: one.energy for one in found.candidates if one.energy is not None}


@pytest.mark.parametrize(
    "shape", [KronShape(16, 2, 3, 24), KronShape(3, 24, 16, 2), KronShape(12, 12, 4, 4), KronShape(4, 3, 12, 16)], ids=str
)
def test_an_exact_sum_of_another_shape_is_found_and_keeps_everything(shape: KronShape) -> None:
    weight = kronecker_sum(shape, 2)
    found = search_shape(weight, shape.parameters(2), seed=0)
    assert shape != balanced(48, 48)
    assert (found.chosen.shape, found.chosen.terms, found.decided_by) == (shape, 2, "energy")
    assert found.chosen.energy == pytest.approx(found.total_energy, rel=1e-6)


@pytest.mark.parametrize("size", [(12, 18), (24, 16), (36, 20), (8, 60), (30, 7), (17, 13), (1, 24), (48, 32)])
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("kind", ["noise", "low rank", "mixed"])
def test_the_choice_is_that_of_an_exact_svd_of_every_divisor_pair(size: tuple[int, int], terms: int, kind: str) -> None:
    weight = drawn(*size)
    if kind != "noise":
        structure = kronecker_sum(KronShape(divisors(size[0])[-2] if size[0] > 1 else 1, 1, *_rest(size)), 2, seed=3)
        weight = structure + (0.05 if kind == "low rank" else 0.7) * structure.std() * weight
    budget = balanced(*size).parameters(min(terms, balanced(*size).max_rank))
    shapes = [KronShape(m, n, size[0] // m, size[1] // n) for m in divisors(size[0]) for n in divisors(size[1])]
    exact = {
        shape: exact_energy(weight, shape, min(budget // shape.term_parameters, shape.max_rank))
        for shape in shapes
        if shape.term_parameters <= budget
    }
    best, plain = max(exact.values()), exact[balanced(*size)]
    found = search_shape(weight, budget, seed=0)
    if best <= 1.1 * plain:
        assert (found.chosen.shape, found.decided_by) == (balanced(*size), "balanced")
    else:
        assert exact[found.chosen.shape] == pytest.approx(best, rel=1e-6)
    for shape, energy in energies(found).items():
        assert energy == pytest.approx(exact[shape], rel=1e-6)


def _rest(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // (divisors(size[0])[-2] if size[0] > 1 else 1), size[1]


def test_a_sketch_never_claims_more_than_there_is_and_misses_little_where_the_spectrum_decays() -> None:
    left, _ = torch.linalg.qr(drawn(300, 300))
    right, _ = torch.linalg.qr(drawn(400, 300, seed=1))
    for decay, missing in ((torch.arange(1.0, 301.0) ** -1, 1e-4), (torch.ones(300), 0.35)):
        matrix = left * decay @ right.T
        true = float(decay[:6].square().sum())
        for one in (matrix, matrix.T):
            assert (1 - missing) * true <= search.sketch_energy(one, 6, seed=0) <= (1 + 1e-5) * true


@pytest.mark.parametrize("seed", range(5))
def test_the_seed_changes_neither_a_clear_choice_nor_that_of_noise(seed: int) -> None:
    noise = drawn(360, 240)
    budget = balanced(360, 240).parameters(2)
    structured = noise + 0.2 * kronecker_sum(KronShape(60, 2, 6, 120), 1)
    assert search_shape(noise, budget, seed=seed).chosen.shape == balanced(360, 240)
    assert search_shape(structured, budget, seed=seed).chosen.shape == KronShape(60, 2, 6, 120)


def test_equal_energies_go_to_the_first_in_the_order() -> None:
    """A symmetric weight keeps as much as (m, n, p, q) as with rows and columns exchanged."""
    product = kronecker_sum(KronShape(12, 2, 3, 18), 1)
    weight = product + product.T
    found = search_shape(weight, KronShape(12, 2, 3, 18).parameters(1), seed=0)
    pair = KronShape(2, 12, 18, 3), KronShape(12, 2, 3, 18)
    order = [one.shape for one in found.candidates]
    assert energies(found)[pair[0]] == pytest.approx(energies(found)[pair[1]], rel=1e-9)
    assert found.decided_by == "order"
    assert found.chosen.shape == min(pair, key=order.index)


def test_overlapping_bounds_are_settled_by_the_order_alone() -> None:
    plain, first, second = (ShapeCandidate(balanced(8, 8), 1, 0.0, energy, 0.02) for energy in (1.0, 2.0, 2.03))
    assert search._best([plain, first, second]) == (first, "order")
    assert search._best([plain, second, first]) == (second, "order")
    clear = ShapeCandidate(balanced(8, 8), 1, 0.0, 2.05, 0.0)
    assert search._best([plain, first, clear]) == (clear, "energy")


def test_less_than_a_tenth_more_is_no_reason_to_leave_the_balanced_shape() -> None:
    plain, better = (ShapeCandidate(balanced(8, 8), 1, 0.0, energy, 1e-9) for energy in (1.0, 1.09))
    assert search._best([plain, better]) == (plain, "balanced")


def test_no_candidate_spends_more_than_the_budget_and_the_next_term_would() -> None:
    budget = search_budget(RankRule("fixed", value=3), 48, 36)
    assert budget == balanced(48, 36).parameters(3)
    for shape, terms in affordable(48, 36, budget):
        assert shape.parameters(terms) <= budget
        assert terms == shape.max_rank or shape.parameters(terms + 1) > budget


def test_the_budget_is_what_the_rules_most_terms_cost_at_the_balanced_shape() -> None:
    assert search_budget(RankRule(), 4096, 4096) == 16 * 8193
    assert search_budget(RankRule("fixed", value=2), 11008, 4096) == 2 * 13_697
    assert RankRule("fixed", value=40).most_terms(9) == 9
    assert search_budget(RankRule(max=100), 4, 4) == 4 * balanced(4, 4).term_parameters


def test_every_certified_candidate_has_a_bound_and_the_balanced_shape_is_among_them() -> None:
    found = search_shape(drawn(40, 60), search_budget(RankRule(), 40, 60), seed=0)
    certified = [one for one in found.candidates if one.energy is not None]
    assert len(certified) == search.FINALISTS
    assert certified[0].shape == found.candidates[0].shape == balanced(40, 60)
    assert all(one.error_bound is not None and one.error_bound >= 0 for one in certified)
    assert all(one.sketch_energy <= (one.energy or 0) * (1 + 1e-5) for one in certified)


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_tiny_and_huge_weights_are_compared_as_others_are(scale: float) -> None:
    weight = kronecker_sum(KronShape(16, 2, 3, 24), 2)
    budget = KronShape(16, 2, 3, 24).parameters(2)
    assert search_shape(weight * scale, budget, seed=0).chosen.shape == KronShape(16, 2, 3, 24)


def test_a_weight_of_zeros_takes_the_balanced_shape() -> None:
    found = search_shape(torch.zeros(12, 18), 100, seed=0)
    assert (found.chosen.shape, found.chosen.energy, found.total_energy) == (balanced(12, 18), 0.0, 0.0)


def test_a_budget_below_one_term_is_refused() -> None:
    with pytest.raises(ValueError, match="10 parameters pay for no term"):
        search_shape(drawn(12, 18), 10, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_index(value: float) -> None:
    weight = drawn(12, 18)
    weight[3, 7] = value
    with pytest.raises(ValueError, match=r"not finite: (nan|inf) at index \(3, 7\)"):
        search_shape(weight, 200, seed=0)
