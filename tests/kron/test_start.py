"""Terms that do not come from the decomposition itself: random ones, and those of another norm."""

import pytest
import torch

from soka_cli.kron import KronFactors, KronShape, RankRule, decompose_weight, random_factors, scaled_to, term_spectrum


@pytest.fixture
def found() -> KronFactors:
    weight = torch.randn(24, 30, generator=torch.Generator().manual_seed(0))
    return decompose_weight(weight, KronShape(4, 5, 6, 6), RankRule("fixed", value=4), seed=0).factors


def test_random_terms_have_the_sizes_and_the_spectrum_of_those_they_stand_for(found: KronFactors) -> None:
    drawn = random_factors(found, seed=1)
    assert (drawn.shape, drawn.rank) == (found.shape, found.rank)
    assert torch.equal(drawn.sigma, found.sigma)
    torch.testing.assert_close(drawn.left.flatten(1).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(drawn.right.flatten(1).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(term_spectrum(drawn), found.sigma.double(), rtol=1e-5, atol=0)


def test_random_terms_are_no_terms_of_the_weight(found: KronFactors) -> None:
    overlap = random_factors(found, seed=1).left.flatten(1) @ found.left.flatten(1).T
    assert float(overlap.abs().max()) < 0.9


def test_random_terms_follow_from_the_seed(found: KronFactors) -> None:
    first, again, other = (random_factors(found, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.left, again.left) and torch.equal(first.right, again.right)
    assert not torch.equal(first.left, other.left) and not torch.equal(first.right, other.right)


def test_terms_scaled_to_a_norm_have_it_and_keep_their_proportions(found: KronFactors) -> None:
    scaled = scaled_to(found, 7.0)
    assert float(scaled.sigma.norm()) == pytest.approx(7.0)
    torch.testing.assert_close(scaled.sigma / scaled.sigma[0], found.sigma / found.sigma[0])
    assert scaled.left is found.left and scaled.right is found.right


def test_terms_of_nothing_stay_nothing(found: KronFactors) -> None:
    empty = KronFactors(found.left, found.right, torch.zeros_like(found.sigma))
    assert torch.equal(scaled_to(empty, 7.0).sigma, torch.zeros(4))
