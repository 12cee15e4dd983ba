"""Products by a matrix that is packed after a few of them."""

import pytest
import torch
from torch import Tensor

from soka_cli.kron import operator
from soka_cli.kron.operator import Operator, Side, can_pack

SCALE = 0.25


def matrix(rows: int = 96, columns: int = 160) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def packs_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "PACKED_ENTRIES", 1)
    if not can_pack(matrix()):
        pytest.skip("this build of PyTorch has no oneDNN")


@pytest.mark.parametrize("turned", [False, True], ids=["as stored", "turned round"])
@pytest.mark.usefixtures("packs_small")
def test_packed_products_are_the_plain_ones_to_rounding(turned: bool) -> None:
    given = matrix().T if turned else matrix()
    subject, right, left = Operator(given, SCALE), torch.randn(given.shape[1], 7), torch.randn(given.shape[0], 7)
    for _ in range(operator.PLAIN_PRODUCTS + 2):
        torch.testing.assert_close(subject.times(right), SCALE * given @ right, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(subject.turned_times(left), SCALE * given.T @ left, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("packs_small")
def test_a_matrix_is_packed_once_and_only_after_a_few_products() -> None:
    side, block = Side(matrix()), torch.randn(160, 3)
    for _ in range(operator.PLAIN_PRODUCTS):
        side.times(block)
    assert side._packed is None
    side.times(block)
    packed = side._packed
    side.times(block)
    assert packed is not None and side._packed is packed


@pytest.mark.usefixtures("packs_small")
def test_packed_products_are_the_same_bits_each_time() -> None:
    first, second = Operator(matrix(), SCALE), Operator(matrix(), SCALE)
    block = torch.randn(160, 16)
    for _ in range(operator.PLAIN_PRODUCTS + 2):
        assert torch.equal(first.times(block), second.times(block))


def test_fp64_matrices_are_never_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "PACKED_ENTRIES", 1)
    assert not can_pack(matrix().double())
