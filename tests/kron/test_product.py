"""The product without the dense matrix is the product with it."""

import pytest
import torch

from soka_cli.kron import kron_dense, kron_product


def factors(rank: int, m: int, n: int, p: int, q: int, *, grad: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank + 10 * m + 100 * n)
    parts = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((rank, m, n), (rank, p, q), (rank,)))
    left, right, sigma = (part.requires_grad_(grad) for part in parts)
    return left, right, sigma


def plain_sum(left: torch.Tensor, right: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return sum((s * torch.kron(u, v) for u, v, s in zip(left, right, sigma, strict=True)), start=torch.zeros((), dtype=sigma.dtype))


SIZES = [(1, 3, 4, 2, 5), (3, 3, 4, 2, 5), (2, 6, 1, 1, 20), (4, 1, 1, 6, 5), (5, 2, 7, 3, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_the_dense_form_is_the_sum_of_kronecker_products(size: tuple[int, ...]) -> None:
    parts = factors(*size)
    torch.testing.assert_close(kron_dense(*parts), plain_sum(*parts), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("leading", [(), (7,), (2, 3), (1, 1, 4)])
@pytest.mark.parametrize("size", SIZES)
def test_the_fast_product_is_the_dense_one_and_keeps_leading_dimensions(size: tuple[int, ...], leading: tuple[int, ...]) -> None:
    _, m, n, p, q = size
    parts = factors(*size)
    x = torch.randn(*leading, n * q, dtype=torch.float64)
    y = kron_product(x, *parts)
    assert y.shape == (*leading, m * p)
    torch.testing.assert_close(y, x @ plain_sum(*parts).T, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_dense_product() -> None:
    parts = factors(3, 3, 4, 2, 5, grad=True)
    x = torch.randn(2, 6, 20, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 6, 6, dtype=torch.float64)
    fast = torch.autograd.grad((kron_product(x, *parts) * target).sum(), (x, *parts))
    dense = torch.autograd.grad((x @ plain_sum(*parts).T * target).sum(), (x, *parts))
    for one, other in zip(fast, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_second_derivatives_agree_with_finite_differences() -> None:
    parts = factors(2, 2, 3, 3, 2, grad=True)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(kron_product, (x, *parts))


@pytest.mark.parametrize("leading", [(0,), (3, 0), (0, 5)])
def test_an_empty_batch_gives_an_empty_batch(leading: tuple[int, ...]) -> None:
    assert kron_product(torch.zeros(*leading, 20, dtype=torch.float64), *factors(3, 3, 4, 2, 5)).shape == (*leading, 6)


def test_no_terms_give_zero() -> None:
    parts = factors(0, 3, 4, 2, 5)
    assert torch.equal(kron_product(torch.ones(2, 20, dtype=torch.float64), *parts), torch.zeros(2, 6, dtype=torch.float64))
    assert torch.equal(kron_dense(*parts), torch.zeros(6, 20, dtype=torch.float64))


def test_inputs_need_not_be_contiguous() -> None:
    left, right, sigma = factors(3, 4, 4, 5, 5)
    x = torch.randn(20, 6, dtype=torch.float64).T
    turned = (left.transpose(1, 2), right.transpose(1, 2), sigma)
    copies = (part.contiguous() for part in turned)
    torch.testing.assert_close(kron_product(x, *turned), kron_product(x.contiguous(), *copies), rtol=1e-13, atol=1e-13)


def test_equal_factors_give_equal_bits() -> None:
    """The difference form of the adapter starts at exactly zero because of it."""
    parts = [part.float() for part in factors(4, 8, 8, 16, 16)]
    x = torch.randn(3, 50, 128)
    assert torch.equal(kron_product(x, *parts), kron_product(x, *(part.clone() for part in parts)))
