"""The law of noise's singular values, against quadrature of its density, published constants and matrices of noise."""

import math

import pytest
import torch

from soka_cli.kron.marchenko_pastur import distribution, hard_threshold, median_threshold, noise_median

BETAS = [1.0, 0.7, 0.25, 0.01, 1e-5]


def mass_below(value: float, beta: float, steps: int = 100_000) -> float:
    """The density sqrt((high - t)(t - low)) / (2 pi beta t), summed by the midpoint rule."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    width = (value - low) / steps
    points = low + width * (torch.arange(steps, dtype=torch.float64) + 0.5)
    return float((((high - points) * (points - low)).sqrt() / (2 * math.pi * beta * points)).sum() * width)


@pytest.mark.parametrize("beta", BETAS)
def test_the_distribution_is_the_integral_of_the_density(beta: float) -> None:
    assert distribution(math.pi, beta) == pytest.approx(1.0, abs=1e-9)
    for phi in (0.5, 1.5, 2.5):
        value = 1 + beta - 2 * math.sqrt(beta) * math.cos(phi)
        assert distribution(phi, beta) == pytest.approx(mass_below(value, beta), abs=2e-3 if beta == 1.0 else 1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_half_of_noise_lies_below_the_median(beta: float) -> None:
    assert mass_below(noise_median(beta), beta) == pytest.approx(0.5, abs=2e-3 if beta == 1.0 else 1e-5)


def test_the_square_matrix_has_the_published_constants() -> None:
    assert hard_threshold(1.0) == pytest.approx(4 / math.sqrt(3), rel=1e-14)
    assert median_threshold(1.0) == pytest.approx(2.858, abs=5e-4)


def test_the_published_cubic_is_within_its_stated_error_and_no_nearer() -> None:
    errors = [
        abs(median_threshold(beta) - (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43))
        for beta in (step / 1000 for step in range(1, 1001))
    ]
    assert 0.01 < max(errors) < 0.02


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (200, 800)])
def test_a_matrix_of_noise_has_that_median(rows: int, columns: int) -> None:
    noise = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares = torch.linalg.svdvals(noise).square() / columns
    assert float(squares.quantile(0.5)) == pytest.approx(noise_median(rows / columns), rel=0.02)
