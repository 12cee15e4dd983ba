"""Principal angles, and what counts as an elbow."""

import math

import pytest
import torch

from soka_cli.kron import clear_elbow, principal_angles


def turned(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two planes in a space of 12 that share one direction; the others are `angle` apart."""
    axes = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    first = torch.stack([axes[0], axes[1]])
    second = torch.stack([axes[0], math.cos(angle) * axes[1] + math.sin(angle) * axes[2]])
    return first.reshape(2, 3, 4), second.reshape(2, 3, 4)


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.3, 1.2, math.pi / 2])
def test_the_angle_between_two_planes_is_found_to_its_own_digits(angle: float) -> None:
    largest, least = principal_angles(*turned(angle)).tolist()
    assert largest == pytest.approx(angle, rel=1e-5)
    assert least < 1e-14


def test_angles_do_not_depend_on_lengths_or_on_which_terms_span_the_same() -> None:
    first, second = turned(0.3)
    mixed = torch.stack([5 * second[0] + second[1], -0.01 * second[1]])
    torch.testing.assert_close(principal_angles(first, mixed), principal_angles(second, first), rtol=1e-9, atol=1e-12)


def test_repeated_and_zero_terms_add_no_direction() -> None:
    first, second = turned(0.3)
    more = torch.cat([second, second[:1], torch.zeros(1, 3, 4)])
    torch.testing.assert_close(principal_angles(first, more), principal_angles(first, second), rtol=1e-9, atol=1e-12)
    assert len(principal_angles(first, torch.zeros(2, 3, 4))) == 0


@pytest.mark.parametrize(
    ("sigma", "elbow"),
    [
        ([4.0, 3.9, 3.8, 1.0, 0.9], 3),
        ([1.0, 0.9, 0.8, 0.7], None),
        ([1.0, 0.5], 1),
        ([2.0, 1.9, 1e-15, 1e-16], 2),
        ([0.0, 0.0], None),
        ([3.0], None),
    ],
)
def test_an_elbow_is_a_fall_to_half(sigma: list[float], elbow: int | None) -> None:
    assert clear_elbow(torch.tensor(sigma)) == elbow
