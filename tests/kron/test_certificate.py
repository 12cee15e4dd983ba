"""Bounds from residuals and from a random probe, against matrices whose eigenvalues are known."""

from math import asinh, sinh, sqrt

import pytest
import torch
from torch import Tensor

from soka_cli.kron import certificate
from soka_cli.kron.certificate import MISS_PROBABILITY, degree_needed, excess, largest_allowed_beyond, least_square, upper_values
from soka_cli.kron.krylov import KrylovSpace
from soka_cli.kron.operator import Operator


def operator(spectrum: Tensor, seed: int) -> Tensor:
    """[n, n] fp64, symmetric with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    vectors, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    return (vectors * spectrum) @ vectors.T


def compressions(matrix: Tensor, columns: int, noise: float, seed: int) -> tuple[Tensor, Tensor, float]:
    """T, C^T C and ||N|| for a subspace near the leading eigenvectors: `noise` away from them."""
    generator = torch.Generator().manual_seed(seed)
    _, vectors = torch.linalg.eigh(matrix)
    leading = vectors[:, -columns:]
    basis, _ = torch.linalg.qr(leading + noise * torch.randn(*leading.shape, generator=generator, dtype=torch.float64))
    outside = torch.eye(len(matrix), dtype=torch.float64) - basis @ basis.T
    leading_out = outside @ matrix @ basis
    return basis.T @ matrix @ basis, leading_out.T @ leading_out, float(torch.linalg.eigvalsh(outside @ matrix @ outside)[-1])


SPECTRA = {
    "flat": torch.linspace(1.0, 0.1, 120, dtype=torch.float64),
    "power law": torch.arange(1, 121, dtype=torch.float64) ** -1.5,
    "repeated": torch.cat([torch.full((30,), 2.0, dtype=torch.float64), torch.linspace(1, 0, 90, dtype=torch.float64)]),
}


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 3e-2, 1.0])
@pytest.mark.parametrize("name", SPECTRA)
def test_no_eigenvalue_lies_above_its_upper_value(name: str, noise: float) -> None:
    matrix = operator(SPECTRA[name], seed=1)
    projected, gram, beyond = compressions(matrix, 20, noise, seed=2)
    true = torch.linalg.eigvalsh(matrix).flip(0)[:8]
    upper = upper_values(projected, gram, beyond, 8)
    assert bool((upper >= true - 1e-12).all())
    assert bool((upper_values(projected, gram, 1.5 * beyond, 8) >= upper - 1e-12).all())


def test_upper_values_are_of_second_order_in_the_residual_where_there_is_a_gap() -> None:
    spectrum = torch.cat([torch.linspace(2.0, 1.8, 10, dtype=torch.float64), torch.linspace(1.0, 0.0, 90, dtype=torch.float64)])
    matrix = operator(spectrum, seed=3)
    errors = []
    for noise in (1e-2, 1e-3):
        projected, gram, beyond = compressions(matrix, 10, noise / 10, seed=4)
        errors.append(float((upper_values(projected, gram, beyond, 10) - torch.linalg.eigvalsh(projected).flip(0)).max()))
    assert errors[1] < errors[0] / 30


@pytest.mark.parametrize("name", SPECTRA)
def test_the_allowed_norm_is_the_largest_that_keeps_the_limits(name: str) -> None:
    matrix = operator(SPECTRA[name], seed=5)
    projected, gram, beyond = compressions(matrix, 40, 1e-3, seed=6)
    limits = torch.linalg.eigvalsh(projected).flip(0)[:6] * 1.02
    room = largest_allowed_beyond(projected, gram, limits)
    assert room > 0
    assert bool((upper_values(projected, gram, room, 6) <= limits * (1 + 1e-9)).all())
    assert bool((upper_values(projected, gram, 1.05 * room + 0.05 * beyond, 6) > limits * (1 - 1e-9)).any())


@pytest.mark.parametrize("columns", [4, 16, 32])
def test_the_random_block_is_as_short_along_a_direction_with_the_stated_probability_at_most(columns: int) -> None:
    half, point = (torch.tensor(value / 2, dtype=torch.float64) for value in (columns, least_square(columns)))
    chance = torch.special.gammainc(half, point)
    assert 0.2 * MISS_PROBABILITY < float(chance) <= MISS_PROBABILITY


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", SPECTRA)
def test_what_a_block_shows_of_a_norm_obeys_the_inequality_behind_the_excess(name: str, seed: int) -> None:
    """sinh((2n + 1) asinh sqrt(h)) <= sqrt(moment / found) / |g|, with the true h and the true g of the block that was drawn."""
    generator = torch.Generator().manual_seed(seed)
    factor = operator(SPECTRA[name].sqrt(), seed=7)  # N = B B^T with B symmetric
    gaussian = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    space = KrylovSpace(Operator(factor, 1.0))
    block, triangle = space.orthonormal(factor @ gaussian, generator)
    moment = float(torch.linalg.matrix_norm(triangle, 2)) ** 2
    values, vectors = torch.linalg.eigh(factor @ factor)
    length = float((vectors[:, -1] @ gaussian).norm())
    for degree in range(6):
        space.extend(block, generator)
        block = space.following
        found = float(space.ritz_values()[0][0])
        share = max(float(values[-1]) / found - 1, 0.0)
        assert sinh((2 * degree + 1) * asinh(sqrt(share))) <= sqrt(moment / found) / length * (1 + 1e-6)


def test_the_excess_is_what_the_norm_may_hide_behind_a_block_as_unlucky_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A direction that the start block touches as little as it may: the excess covers it, and half of it would not."""
    spectrum = torch.cat([torch.linspace(1.0, 0.0, 199, dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)])
    monkeypatch.setattr(certificate, "MISS_PROBABILITY", 1e-3)
    root = torch.diag(spectrum.sqrt())
    gaussian = torch.randn(200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gaussian[-1] *= sqrt(least_square(4)) / gaussian[-1].norm()
    space, generator = KrylovSpace(Operator(root, 1.0)), torch.Generator().manual_seed(0)
    block, triangle = space.orthonormal(root @ gaussian, generator)
    moment = float(torch.linalg.matrix_norm(triangle, 2)) ** 2
    for degree in range(5):
        space.extend(block, generator)
        block = space.following
        found = float(space.ritz_values()[0][0])
        assert found * (1 + excess(degree, moment, found, 4)) >= 1.3
    assert found < 1.29  # the space does not show it yet


def test_the_degree_needed_is_that_at_which_the_excess_falls_to_the_share() -> None:
    for share in (1e-3, 0.05, 2.0):
        degree = degree_needed(share, moment=900.0, found=1.0, columns=16)
        assert excess(int(degree) + 1, 900.0, 1.0, 16) <= share
        assert degree < 1 or excess(int(degree) - 1, 900.0, 1.0, 16) > share


def test_nothing_found_certifies_nothing() -> None:
    assert excess(5, 1.0, 0.0, 16) == float("inf")
