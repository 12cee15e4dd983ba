"""Kronecker sums and their gradients on a GPU in one kernel each: what lies between the factors never reaches memory.

One program holds one vector as an n x q tile on the chip and goes through the terms. Products accumulate in fp32; fp32 operands are not
rounded to TF32; of bf16 operands the value between the factors is rounded to bf16, as a product in torch would be. Written in Triton;
`contraction.py` asks `fits` and has the torch path for everything else.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from soka_cli.kron.shape import KronShape

SMALLEST = 16  # the least side of a tile that a product takes
LARGEST = 128 * 128  # values of the largest tile that a program can hold beside its others
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PARTS = 128  # programs a term that share the vectors in the gradients; their sums are added up in one order, so the result is fixed
WARPS = 8


def fits(shape: KronShape, dtype: torch.dtype) -> bool:
    """Whether every factor and both forms of a vector fit a tile, and the fixed order (R first) is not the dear one."""
    m, n, p, q = sides(shape)
    tiles = max(m * n, p * q, n * q, m * p, n * p)
    cheap = shape.n * shape.p * (shape.q + shape.m) <= 2 * shape.m * shape.q * (shape.n + shape.p)
    return dtype in DTYPES and tiles <= LARGEST and cheap


def sides(shape: KronShape) -> tuple[int, int, int, int]:
    """Each side up to the next power of two."""
    m, n, p, q = (max(SMALLEST, 1 << (side - 1).bit_length()) for side in (shape.m, shape.n, shape.p, shape.q))
    return m, n, p, q


def apply_terms(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """As `contraction.apply_terms`: x [T, n*q], L [r, m, n], R [r, p, q] -> [T, m*p]."""
    shape = _shape(left, right)
    y = x.new_empty(len(x), shape.out_features)
    if len(x):
        tiles = dict(zip(("M_TILE", "N_TILE", "P_TILE", "Q_TILE"), sides(shape), strict=True))
        grid = (len(x),)
        _apply[grid](*_dense(x, left, right), y, len(left), *_sizes(shape), **tiles, num_warps=WARPS)
    return y


def term_gradients(x: Tensor, gradient: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """As `contraction.term_gradients`: dL [r, m, n] and dR [r, p, q], fp32."""
    shape, rank = _shape(left, right), len(left)
    parts = max(1, min(PARTS, len(x)))
    d_left = torch.empty(parts, *left.shape, dtype=torch.float32, device=x.device)
    d_right = torch.empty(parts, *right.shape, dtype=torch.float32, device=x.device)
    if rank:
        tiles = dict(zip(("M_TILE", "N_TILE", "P_TILE", "Q_TILE"), sides(shape), strict=True))
        grid = (rank, parts)
        _gradients[grid](*_dense(x, gradient, left, right), d_left, d_right, len(x), parts, rank, *_sizes(shape), **tiles, num_warps=WARPS)
    return d_left.sum(0), d_right.sum(0)


def _shape(left: Tensor, right: Tensor) -> KronShape:
    return KronShape(*left.shape[1:], *right.shape[1:])


def _sizes(shape: KronShape) -> tuple[int, int, int, int]:
    return shape.m, shape.n, shape.p, shape.q


def _dense(*tensors: Tensor) -> Sequence[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


@triton.jit
def _tile(start: Any, rows: Any, columns: Any, row_count: Any, column_count: Any) -> Any:
    """A row_count x column_count matrix at `start` as a tile, zero beyond its sides."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return tl.load(start + rows[:, None] * column_count + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(start: Any, tile: Any, rows: Any, columns: Any, row_count: Any, column_count: Any) -> Any:
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    tl.store(start + rows[:, None] * column_count + columns[None, :], tile, mask=inside)


@triton.jit
def _apply(
    x_at: Any,
    left_at: Any,
    right_at: Any,
    y_at: Any,
    rank: Any,
    m: Any,
    n: Any,
    p: Any,
    q: Any,
    M_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    P_TILE: tl.constexpr,
    Q_TILE: tl.constexpr,
) -> None:
    """y_t = sum_k L_k X_t R_k^T for the vector t of this program."""
    vector = tl.program_id(0).to(tl.int64)
    ms, ns, ps, qs = tl.arange(0, M_TILE), tl.arange(0, N_TILE), tl.arange(0, P_TILE), tl.arange(0, Q_TILE)
    x = _tile(x_at + vector * n * q, ns, qs, n, q)
    y = tl.zeros((M_TILE, P_TILE), tl.float32)
    for term in range(rank):
        right = _tile(right_at + term * p * q, ps, qs, p, q)
        left = _tile(left_at + term * m * n, ms, ns, m, n)
        between = tl.dot(x, tl.trans(right), input_precision="ieee").to(x.dtype)  # (n, p)
        y += tl.dot(left, between, input_precision="ieee")
    _put(y_at + vector * m * p, y.to(x.dtype), ms, ps, m, p)


@triton.jit
def _gradients(
    x_at: Any,
    gradient_at: Any,
    left_at: Any,
    right_at: Any,
    d_left_at: Any,
    d_right_at: Any,
    vectors: Any,
    parts: Any,
    rank: Any,
    m: Any,
    n: Any,
    p: Any,
    q: Any,
    M_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    P_TILE: tl.constexpr,
    Q_TILE: tl.constexpr,
) -> None:
    """dL_k and dR_k over every `parts`-th vector, for the term and the part of this program."""
    term, part = tl.program_id(0), tl.program_id(1)
    ms, ns, ps, qs = tl.arange(0, M_TILE), tl.arange(0, N_TILE), tl.arange(0, P_TILE), tl.arange(0, Q_TILE)
    left = _tile(left_at + term * m * n, ms, ns, m, n)
    right = _tile(right_at + term * p * q, ps, qs, p, q)
    d_left = tl.zeros((M_TILE, N_TILE), tl.float32)
    d_right = tl.zeros((P_TILE, Q_TILE), tl.float32)
    for vector in range(part, vectors, parts):
        place = tl.cast(vector, tl.int64)
        x = _tile(x_at + place * n * q, ns, qs, n, q)
        gradient = _tile(gradient_at + place * m * p, ms, ps, m, p)
        through_right = tl.dot(x, tl.trans(right), input_precision="ieee").to(x.dtype)  # X R^T, (n, p)
        through_left = tl.dot(tl.trans(left), gradient, input_precision="ieee").to(x.dtype)  # L^T G, (n, p)
        d_left += tl.dot(gradient, tl.trans(through_right), input_precision="ieee")
        d_right += tl.dot(tl.trans(through_left), x, input_precision="ieee")
    slot = (part * rank + term).to(tl.int64)
    _put(d_left_at + slot * m * n, d_left, ms, ns, m, n)
    _put(d_right_at + slot * p * q, d_right, ps, qs, p, q)
