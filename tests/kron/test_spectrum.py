"""Spectra of Kronecker sums without the dense matrix."""

import pytest
import torch

from soka_cli.kron import KronFactors, kron_dense, rearrange, term_spectrum, update_terms


def terms(rank: int, seed: int) -> KronFactors:
    generator = torch.Generator().manual_seed(seed)
    left, right, sigma = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((rank, 3, 4), (rank, 2, 5), (rank,)))
    return KronFactors(left, right, sigma)


def dense(factors: KronFactors) -> torch.Tensor:
    return kron_dense(factors.left, factors.right, factors.sigma)


@pytest.mark.parametrize("rank", [1, 3, 10, 14])
def test_the_spectrum_of_the_terms_is_that_of_the_rearranged_matrix(rank: int) -> None:
    factors = terms(rank, 0)
    found = term_spectrum(factors)
    expected = torch.linalg.svdvals(rearrange(dense(factors), factors.shape))
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-12, atol=1e-12)
    assert not bool((expected[len(found) :] > 1e-12).any())


def test_the_update_is_the_difference_of_the_two_sums() -> None:
    now, start = terms(3, 1), terms(3, 2)
    torch.testing.assert_close(dense(update_terms(now, start)), dense(now) - dense(start), rtol=1e-12, atol=1e-12)


def test_nothing_learnt_is_exactly_zero() -> None:
    assert not term_spectrum(update_terms(terms(3, 1), terms(3, 1))).any()
