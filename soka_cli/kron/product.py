"""A sum of Kronecker products applied to vectors without forming it, and the same sum as a dense matrix."""

from math import prod

from torch import Tensor

from soka_cli.kron.rearrange import restore
from soka_cli.kron.shape import KronShape


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
