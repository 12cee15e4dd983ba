"""What `test_kernels.py` runs in a process of its own: Triton decides when it is imported whether kernels are interpreted."""

import pytest
import torch
from torch import Tensor

from soka_cli.kron import KronShape, contraction, kernels
from tests.kron.shapes import random_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative errors of norms. In fp32 sums differ in order; in bf16 (fp16) the value between the factors is rounded, 2^-9 (2^-11) relative.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}
if DEVICE == "cpu":
    del TOLERANCE[torch.bfloat16]  # the interpreter multiplies its bit patterns

SIZES = [(1, 16, 16, 16, 16), (3, 3, 4, 2, 5), (2, 17, 8, 4, 33), (2, 1, 20, 30, 1), (0, 3, 4, 2, 5)]
SIZES += random_sizes(4, largest=40)


def drawn(dtype: torch.dtype, *sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes[0]))
    return [torch.randn(*size, generator=generator).to(DEVICE, dtype) for size in sizes]


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)) if exact.numel() else 0.0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("vectors", [0, 1, 5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_applied_terms_are_the_torch_path_s(size: tuple[int, ...], vectors: int, dtype: torch.dtype) -> None:
    rank, m, n, p, q = size
    x, left, right = drawn(dtype, (vectors, n * q), (rank, m, n), (rank, p, q))
    exact = contraction.apply_terms(x.double(), left.double(), right.double())
    found = kernels.apply_terms(x, left, right)
    assert found.dtype == dtype
    assert error(found, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("vectors", [0, 1, 5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_the_torch_path_s(size: tuple[int, ...], vectors: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PARTS", 2)
    rank, m, n, p, q = size
    tensors = drawn(dtype, (vectors, n * q), (vectors, m * p), (rank, m, n), (rank, p, q))
    for found, exact in zip(kernels.term_gradients(*tensors), contraction.term_gradients(*(one.double() for one in tensors)), strict=True):
        assert found.dtype == torch.float32
        assert error(found, exact) < TOLERANCE[dtype]


def test_inputs_need_not_be_contiguous() -> None:
    x, left, right = (one.transpose(-1, -2) for one in drawn(torch.float32, (20, 3), (2, 4, 3), (2, 5, 2)))
    exact = contraction.apply_terms(x.double(), left.double(), right.double())
    assert error(kernels.apply_terms(x, left, right), exact) < TOLERANCE[torch.float32]


def test_equal_factors_give_equal_bits_and_zeros_nothing() -> None:
    x, left, right = drawn(torch.float32, (4, 64), (2, 8, 8), (2, 8, 8))
    assert torch.equal(kernels.apply_terms(x, left, right), kernels.apply_terms(x, left.clone(), right.clone()))
    assert not kernels.apply_terms(x, torch.zeros_like(left), right).any()


def test_what_does_not_fit_a_tile_or_is_dear_in_this_order_is_left_to_torch() -> None:
    assert kernels.fits(KronShape(64, 64, 64, 64), torch.bfloat16)
    assert kernels.fits(KronShape(86, 64, 128, 64), torch.float32)
    assert not kernels.fits(KronShape(64, 64, 64, 64), torch.float64)
    assert not kernels.fits(KronShape(256, 128, 16, 32), torch.bfloat16)
    assert not kernels.fits(KronShape(1, 64, 64, 1), torch.bfloat16)
