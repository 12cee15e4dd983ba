"""The Krylov space: orthonormal, its relation to A A^T exact to rounding, in fp64 so that rounding cannot hide a fault."""

import pytest
import torch
from torch import Tensor

from soka_cli.kron.krylov import KrylovSpace, random_block
from soka_cli.kron.operator import Operator

SCALE = 0.25


def grown(matrix: Tensor, steps: int, outside: Tensor | None = None) -> KrylovSpace:
    generator = torch.Generator().manual_seed(0)
    space = KrylovSpace(Operator(matrix, SCALE), outside)
    block, _ = space.orthonormal(random_block(matrix, 8, generator), generator)
    for _ in range(steps):
        space.extend(block, generator)
        block = space.following
    return space


def assert_related(space: KrylovSpace, operator: Tensor) -> None:
    """A A^T Q = Q T + following leading_out, with everything orthonormal."""
    basis = space.basis
    together = torch.cat([basis, space.following, space.outside], 1)
    torch.testing.assert_close(together.T @ together, torch.eye(together.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(operator @ basis, basis @ space.projected + space.following @ space.leading_out, rtol=0, atol=1e-10)


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(150, 170, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_space_is_orthonormal_and_says_what_leads_out_of_it(matrix: Tensor) -> None:
    assert_related(grown(matrix, 6), SCALE**2 * matrix @ matrix.T)


def test_a_space_outside_given_columns_is_that_of_the_deflated_operator(matrix: Tensor) -> None:
    outside, _ = torch.linalg.qr(torch.randn(150, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    projector = torch.eye(150, dtype=torch.float64) - outside @ outside.T
    assert_related(grown(matrix, 5, outside), SCALE**2 * projector @ matrix @ matrix.T @ projector)


def test_ritz_pairs_have_the_residuals_that_they_state(matrix: Tensor) -> None:
    space = grown(matrix, 6)
    values, rotation = space.ritz_values()
    pairs = space.ritz_pairs(values[:10], rotation[:, :10])
    operator = SCALE**2 * matrix @ matrix.T
    torch.testing.assert_close(operator @ pairs.vectors - pairs.vectors * pairs.values, pairs.residuals, rtol=0, atol=1e-10)


def test_after_a_restart_the_relation_holds_and_goes_on_holding(matrix: Tensor) -> None:
    space, generator = grown(matrix, 6), torch.Generator().manual_seed(3)
    values, rotation = space.ritz_values()
    space.restart(space.ritz_pairs(values[:20], rotation[:, :20]), rotation[:, :20])
    operator = SCALE**2 * matrix @ matrix.T
    assert_related(space, operator)
    space.extend(space.following, generator)
    assert_related(space, operator)
    assert space.size == 28


def test_an_invariant_space_goes_on_in_random_directions() -> None:
    generator = torch.Generator().manual_seed(4)
    low = torch.randn(90, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 100, generator=generator, dtype=torch.float64)
    space = grown(low, 4)
    assert_related(space, SCALE**2 * low @ low.T)
    assert int((space.ritz_values()[0] > 1e-8).sum()) == 5
