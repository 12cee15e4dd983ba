"""Sums of Kronecker products applied to vectors without forming them, and as a dense matrix: the readable definitions.

What trains is in `linear.py`, which is held to these.
"""

from math import prod

import torch
from torch import Tensor

from soka_cli.kron.factors import KronFactors
from soka_cli.kron.rearrange import restore
from soka_cli.kron.shape import KronShape

KronSum = tuple[Tensor, Tensor, Tensor]
"""left [r, m, n], right [r, p, q] and sigma [r] of sum_k sigma_k U_k (x) V_k."""


def kron_product(x: Tensor, left: Tensor, right: Tensor, sigma: Tensor) -> Tensor:
    """y = sum_k sigma_k (U_k (x) V_k) x, for each vector x: with X = x viewed as [n, q], y = vec(sum_k sigma_k U_k X V_k^T).

    All terms go through two matrix products; n p r (q + m) multiply-adds a vector. Differentiable in every argument.

    Args:
        x: [..., n*q].
        left: U, [r, m, n].
        right: V, [r, p, q].
        sigma: [r].

    Returns:
        [..., m*p], in the type of x (all arguments share one type).
    """
    rank, m, n = left.shape
    _, p, q = right.shape
    vectors = prod(x.shape[:-1])
    rows = x.reshape(vectors * n, q)
    inner = rows @ right.reshape(rank * p, q).T  # (T*n, r*p)
    scaled = (sigma[:, None, None] * left).permute(1, 2, 0).reshape(m, n * rank)  # (m, n*r)
    y = scaled @ inner.reshape(vectors, n * rank, p)  # (T, m, p)
    return y.reshape(*x.shape[:-1], m * p)


def kron_dense(left: Tensor, right: Tensor, sigma: Tensor) -> Tensor:
    """K = sum_k sigma_k U_k (x) V_k as a matrix, for merging.

    Args:
        left: U, [r, m, n].
        right: V, [r, p, q].
        sigma: [r].

    Returns:
        [m*p, n*q].
    """
    rank, m, n = left.shape
    _, p, q = right.shape
    rearranged = (sigma[:, None] * left.reshape(rank, m * n)).T @ right.reshape(rank, p * q)  # (m*n, p*q)
    return restore(rearranged, KronShape(m, n, p, q))


def kron_difference(now: KronFactors, start: KronFactors) -> tuple[KronSum, KronSum]:
    """K(theta) - K(theta0) as two Kronecker sums, each exactly zero where the two are equal.

    sigma U (x) V - sigma0 U0 (x) V0 = (sigma U - sigma0 U0) (x) V + sigma0 U0 (x) (V - V0). The parameters are subtracted,
    not the two large products, so nothing cancels when the products are rounded to bf16.
    """
    left = now.sigma[:, None, None] * now.left - start.sigma[:, None, None] * start.left
    return (left, now.right, torch.ones_like(start.sigma)), (start.left, now.right - start.right, start.sigma)
