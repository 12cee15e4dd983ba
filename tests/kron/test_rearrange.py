"""The rearrangement, its inverse, and the reshape that it must not be."""

import pytest
import torch

from soka_cli.kron import KronShape, rearrange, restore

SHAPES = [KronShape(3, 4, 2, 5), KronShape(6, 1, 1, 20), KronShape(1, 1, 6, 20), KronShape(2, 10, 3, 2), KronShape(4, 4, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_inverse_undoes_the_rearrangement(shape: KronShape) -> None:
    weight = torch.randn(shape.out_features, shape.in_features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restore(rearrange(weight, shape), shape), weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kronecker_product_becomes_the_outer_product_of_its_factors(shape: KronShape) -> None:
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(shape.m, shape.n, generator=generator, dtype=torch.float64)
    right = torch.randn(shape.p, shape.q, generator=generator, dtype=torch.float64)
    outer = left.reshape(-1, 1) * right.reshape(1, -1)
    assert torch.equal(rearrange(torch.kron(left, right), shape), outer)


def test_a_literal_reshape_is_no_approximation() -> None:
    """Its truncation fits the reshaped matrix, and misses the weight by more than leaving it out, growing with the rank."""
    shape = KronShape(8, 8, 8, 8)
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def error(matrix: torch.Tensor, rank: int) -> float:
        left, sigma, right = torch.linalg.svd(matrix)
        terms = zip(left.T[:rank], sigma[:rank], right[:rank], strict=True)
        total = sum(s * torch.kron(u.reshape(8, 8), v.reshape(8, 8)) for u, s, v in terms)
        return float((weight - total).norm() / weight.norm())

    ranks = (1, 4, 16, 64)
    literal = [error(weight.reshape(64, 64), rank) for rank in ranks]
    assert literal[0] > 1.0
    assert literal == sorted(literal)
    true = [error(rearrange(weight, shape), rank) for rank in ranks]
    assert true[0] < 1.0
    assert true == sorted(true, reverse=True)
    assert true[-1] < 1e-12


def test_a_weight_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not fit 3x4 \(x\) 2x5, which is 6 x 20"):
        rearrange(torch.zeros(20, 6), KronShape(3, 4, 2, 5))
    with pytest.raises(ValueError, match="no rearranged weight"):
        restore(torch.zeros(6, 20), KronShape(3, 4, 2, 5))


def test_a_transposed_view_gives_the_bits_of_its_copy() -> None:
    shape = KronShape(6, 1, 1, 20)
    view = torch.randn(20, 6).T
    rearranged = rearrange(view, shape)
    assert rearranged.is_contiguous()
    assert torch.equal(rearranged, rearrange(view.contiguous(), shape))
