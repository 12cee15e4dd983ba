"""The products laid out for speed are those of the dense matrix, in every shape, order and block length."""

import pytest
import torch
from torch import Tensor

from soka_cli.kron import KronShape, contraction, kron_dense
from soka_cli.kron.contraction import add_terms, apply_terms, matrix_term_gradients, order_costs, term_gradients
from tests.kron.shapes import random_sizes

# Square, wide, no terms, more terms than are added row by row, and both ends of the family, where one order is the only good one.
SIZES = [(3, 3, 4, 2, 5), (2, 2, 7, 3, 4), (0, 3, 4, 2, 5), (20, 4, 4, 4, 4), (4, 30, 1, 1, 20), (4, 1, 20, 30, 1), (1, 1, 1, 5, 6)]
SIZES += random_sizes(8)
VECTORS = [0, 1, 7, 100]


def drawn(*sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes[0]))
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def factors(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    rank, m, n, p, q = size
    left, right = drawn((rank, m, n), (rank, p, q))
    return left, right


def matrix(left: Tensor, right: Tensor) -> Tensor:
    return kron_dense(left, right, left.new_ones(len(left)))


@pytest.fixture(params=["one block", "many blocks"], autouse=True)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(contraction, "CACHE_BYTES", 1)
        monkeypatch.setattr(contraction, "FEWEST_VECTORS", 3)


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_applied_terms_are_the_matrix_applied(size: tuple[int, ...], vectors: int) -> None:
    left, right = factors(size)
    (x,) = drawn((vectors, size[2] * size[4]))
    torch.testing.assert_close(apply_terms(x, left, right), x @ matrix(left, right).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_of_the_terms_are_autograds_through_the_matrix(size: tuple[int, ...], vectors: int) -> None:
    left, right = (one.requires_grad_() for one in factors(size))
    _, m, n, p, q = size
    x, gradient = drawn((vectors, n * q), (vectors, m * p))
    expected = torch.autograd.grad(x @ matrix(left, right).T, (left, right), gradient)
    with torch.no_grad():
        for found in (term_gradients(x, gradient, left, right), matrix_term_gradients(gradient.T @ x, left, right)):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_terms_added_to_a_weight_are_the_matrix_added(size: tuple[int, ...]) -> None:
    left, right = factors(size)
    (weight,) = drawn((size[1] * size[3], size[2] * size[4]))
    torch.testing.assert_close(add_terms(weight, left, right), weight + matrix(left, right), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("terms", [4, 40])
def test_terms_with_a_factor_of_zeros_leave_a_weight_bit_for_bit(terms: int) -> None:
    weight, left, right = (one.float() for one in drawn((32, 32), (terms, 4, 4), (terms, 8, 8)))
    assert torch.equal(add_terms(weight, torch.zeros_like(left), right), weight)
    assert torch.equal(add_terms(weight, left, torch.zeros_like(right)), weight)


def test_inputs_need_not_be_contiguous() -> None:
    left, right = (one.transpose(1, 2) for one in factors((3, 4, 3, 5, 2)))
    x, gradient = (one.T for one in drawn((20, 9), (6, 9)))
    torch.testing.assert_close(apply_terms(x, left, right), x @ matrix(left, right).T, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        term_gradients(x, gradient, left, right),
        term_gradients(x.contiguous(), gradient.contiguous(), left.contiguous(), right.contiguous()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_sums_over_many_vectors_in_bfloat16_are_kept_in_fp32() -> None:
    left, right = (one.bfloat16() for one in factors((2, 4, 4, 4, 4)))
    x, gradient = (one.bfloat16() for one in drawn((3000, 16), (3000, 16)))
    got = term_gradients(x, gradient, left, right)
    exact = term_gradients(x.double(), gradient.double(), left.double(), right.double())
    for one, other in zip(got, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 0.02


def test_the_cheaper_order_of_the_low_rank_end_never_touches_the_matrix() -> None:
    """As many multiply-adds a vector as LoRA: out + in."""
    assert min(order_costs(KronShape(m=30, n=1, p=1, q=20))) == min(order_costs(KronShape(m=1, n=20, p=30, q=1))) == 50
