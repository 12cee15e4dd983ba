"""Kronecker sums and their gradients as plain matrix products on operands laid out for them, a block of vectors at a time.

Everything here takes K = sum_k L_k (x) R_k, weights multiplied into L. On a GPU the kernels of `kernels.py` do it. No autograd:
`linear.py` has the functions that save little and call this. The readable definitions are in `product.py`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from soka_cli.kron.shape import KronShape

CACHE_BYTES = 2 << 20  # what a block of vectors may fill on a CPU: about the second-level cache of a core
MEMORY_BYTES = 256 << 20  # on other devices, where a block only bounds the memory of intermediate values
FEWEST_VECTORS = 32  # a shorter block costs more calls than its place in the cache saves
BATCHED_TERMS = 12  # up to so many terms are added to a matrix row by row, without a rearranged copy


def order_costs(shape: KronShape) -> tuple[int, int]:
    """Multiply-adds of one term on one vector: R first, n p (q + m), and L first, m q (n + p)."""
    return shape.n * shape.p * (shape.q + shape.m), shape.m * shape.q * (shape.n + shape.p)


def right_comes_first(shape: KronShape) -> bool:
    """Whether (X R^T) and then L is the cheaper order, or as cheap; the kernels of a GPU take no other."""
    right_first, left_first = order_costs(shape)
    return right_first <= left_first


@dataclass(frozen=True)
class LaidOut:
    """sum_k L_k (x) R_k as the two operands of its products, in the cheaper order; applied to [T, n*q] it gives [T, m*p].

    Args:
        inner: R first [q, r*p], else L first [m*r, n].
        outer: R first [m, n*r], else L first [r*q, p].
        rank, m, n, p, q: sizes of L [r, m, n] and R [r, p, q].
        right_first: the order.
    """

    inner: Tensor
    outer: Tensor
    rank: int
    m: int
    n: int
    p: int
    q: int
    right_first: bool

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> "LaidOut":
        rank, m, n = left.shape
        _, p, q = right.shape
        if right_first := right_comes_first(KronShape(m, n, p, q)):
            inner, outer = right.reshape(rank * p, q).T, left.permute(1, 2, 0).reshape(m, n * rank)
        else:
            inner, outer = left.permute(1, 0, 2).reshape(m * rank, n), right.permute(0, 2, 1).reshape(rank * q, p)
        return cls(inner, outer, rank, m, n, p, q, right_first)

    def __call__(self, x: Tensor) -> Tensor:
        between = self.rank * (self.n * self.p if self.right_first else self.m * self.q)
        length = _block_length(x, 2 * (self.n * self.q + self.m * self.p) + between)
        if length >= len(x):
            return self._block(x)
        y = x.new_empty(len(x), self.m * self.p)
        for rows, out in zip(x.split(length), y.split(length), strict=True):
            self._block(rows, out)
        return y

    def _block(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        count, rank, m, n, p, q = len(x), self.rank, self.m, self.n, self.p, self.q
        if self.right_first:
            between = (x.reshape(count * n, q) @ self.inner).view(count, n * rank, p)
            y = torch.matmul(self.outer, between, out=None if out is None else out.view(count, m, p))  # (t, m, p)
        else:
            between = torch.matmul(self.inner, x.reshape(count, n, q)).view(count * m, rank * q)
            y = torch.mm(between, self.outer, out=None if out is None else out.view(count * m, p))  # (t*m, p)
        return y.view(count, m * p)


def apply_terms(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """y = sum_k (L_k (x) R_k) x for each row, in the cheaper order.

    Args:
        x: [T, n*q].
        left: L, [r, m, n].
        right: R, [r, p, q].

    Returns:
        [T, m*p].
    """
    if (kernels := _fused(x, left, right)) is not None:
        return kernels.apply_terms(x, left, right)
    return LaidOut.of(left, right)(x)


def term_gradients(x: Tensor, gradient: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y = sum_k (L_k (x) R_k) x: dL_k = sum_t G_t R_k X_t^T and dR_k = sum_t G_t^T L_k X_t.

    2 n p (q + m) multiply-adds a vector and term, or those of the other order where it is cheaper.

    Args:
        x: [T, n*q]; X_t is row t as [n, q].
        gradient: of y, [T, m*p]; G_t is row t as [m, p].
        left: L, [r, m, n].
        right: R, [r, p, q].

    Returns:
        dL [r, m, n] and dR [r, p, q], summed over blocks in fp32 or better.
    """
    if (kernels := _fused(x, left, right)) is not None:
        return kernels.term_gradients(x, gradient, left, right)
    rank, m, n = left.shape
    _, p, q = right.shape
    swapped = not right_comes_first(KronShape(m, n, p, q))  # Y = L X R^T is Y^T = R X^T L^T: the factors change places
    inputs, outputs = x.reshape(len(x), n, q), gradient.reshape(len(x), m, p)
    if swapped:
        inputs, outputs, left, right = inputs.transpose(1, 2), outputs.transpose(1, 2), right, left
        m, n, p, q = p, q, m, n
    turned_left = left.permute(0, 2, 1).reshape(rank * n, m)
    turned_right = right.transpose(1, 2)  # (r, q, p)
    exact = torch.promote_types(x.dtype, torch.float32)
    d_left = torch.zeros(m, rank * n, dtype=exact, device=x.device)
    d_right = torch.zeros(rank, p, q, dtype=exact, device=x.device)
    length = _block_length(x, n * q + m * p + 2 * rank * n * p)
    for xs, gs in zip(inputs.split(length), outputs.split(length), strict=True):
        count = len(xs)
        xs = xs.transpose(0, 1).reshape(1, n * count, q)  # (1, n*t, q)
        gs = gs.transpose(0, 1).reshape(m, count * p)  # (m, t*p)
        through_right = torch.matmul(xs, turned_right).view(rank * n, count * p)  # X_t R_k^T
        through_left = torch.mm(turned_left, gs).view(rank, n * count, p)  # L_k^T G_t
        d_left += gs @ through_right.T
        d_right += torch.bmm(through_left.transpose(1, 2), xs.expand(rank, -1, -1))
    d_left = d_left.view(m, rank, n).transpose(0, 1)
    return (d_right, d_left) if swapped else (d_left, d_right)


def matrix_term_gradients(gradient: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the gradient D of the whole matrix: dL_k = sum over R_k's entries of R(D), dR_k over L_k's.

    Args:
        gradient: D = sum_t y_t x_t^T, [m*p, n*q].
        left: L, [r, m, n].
        right: R, [r, p, q].

    Returns:
        dL [r, m, n] and dR [r, p, q].
    """
    rank, m, n = left.shape
    _, p, q = right.shape
    rearranged = gradient.view(m, p, n, q).transpose(1, 2).reshape(m * n, p * q)
    d_left = right.reshape(rank, p * q) @ rearranged.T
    d_right = left.reshape(rank, m * n) @ rearranged
    return d_left.view(rank, m, n), d_right.view(rank, p, q)


def add_terms(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """W + sum_k L_k (x) R_k in new memory; W itself, bit for bit, where every term has a factor of zeros.

    Args:
        weight: W, [m*p, n*q].
        left: L, [r, m, n].
        right: R, [r, p, q].

    Returns:
        [m*p, n*q].
    """
    rank, m, n = left.shape
    _, p, q = right.shape
    if rank <= BATCHED_TERMS and min(n, q) > 1:
        rows = left.permute(1, 2, 0)[:, None].expand(m, p, n, rank).reshape(m * p, n, rank)
        columns = right.transpose(0, 1).expand(m, p, rank, q).reshape(m * p, rank, q)
        return torch.baddbmm(weight.reshape(m * p, n, q), rows, columns).view(m * p, n * q)  # one n x q block an output
    rearranged = left.reshape(rank, m * n).T @ right.reshape(rank, p * q)  # (m*n, p*q)
    total = weight.reshape(m, p, n, q) + rearranged.view(m, n, p, q).transpose(1, 2)
    return total.reshape(m * p, n * q)


def _fused(x: Tensor, left: Tensor, right: Tensor) -> Any:
    """The module of fused kernels where they can take these: on a GPU with Triton, not while a compiler traces, which fuses by itself."""
    if not x.is_cuda or torch.compiler.is_compiling() or find_spec("triton") is None:
        return None
    from soka_cli.kron import kernels

    return kernels if kernels.fits(KronShape(*left.shape[1:], *right.shape[1:]), x.dtype) else None


def _block_length(x: Tensor, values: int) -> int:
    """Rows of a block that holds `values` values a row; a traced graph gets one block, which its compiler cuts as it likes."""
    if torch.compiler.is_compiling():
        return max(1, len(x))
    room = CACHE_BYTES if x.device.type == "cpu" else MEMORY_BYTES
    length: int = max(FEWEST_VECTORS, room // (values * x.element_size()))
    return max(1, min(len(x), 1 << (length.bit_length() - 1)))
