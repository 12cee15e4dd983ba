"""The Van Loan-Pitsianis rearrangement R(W), which turns a Kronecker product into a rank-one matrix, and its inverse."""

from torch import Tensor

from soka_cli.kron.shape import KronShape


def rearrange(weight: Tensor, shape: KronShape) -> Tensor:
    """R(W): row i*n + j holds the p x q block (i, j) of W, flattened; R(U (x) V) = vec(U) vec(V)^T.

    The Frobenius norm is kept, so truncating the SVD of R(W) gives the nearest sum of Kronecker products.

    Args:
        weight: [m*p, n*q].
        shape: sizes of the factors.

    Returns:
        [m*n, p*q], contiguous.

    Raises:
        ValueError: the weight has another size.

    Source: Van Loan and Pitsianis, Approximation with Kronecker products, 1993.
    """
    if tuple(weight.shape) != (shape.out_features, shape.in_features):
        raise ValueError(f"a weight of {tuple(weight.shape)} does not fit {shape}, which is {shape.out_features} x {shape.in_features}")
    blocks = weight.reshape(shape.m, shape.p, shape.n, shape.q).permute(0, 2, 1, 3)  # (m, n, p, q)
    return blocks.reshape(shape.m * shape.n, shape.p * shape.q).contiguous()


def restore(rearranged: Tensor, shape: KronShape) -> Tensor:
    """The inverse of `rearrange`: [m*n, p*q] -> [m*p, n*q].

    Raises:
        ValueError: the matrix has another size.
    """
    if tuple(rearranged.shape) != (shape.m * shape.n, shape.p * shape.q):
        raise ValueError(f"a matrix of {tuple(rearranged.shape)} is no rearranged weight of {shape}")
    blocks = rearranged.reshape(shape.m, shape.n, shape.p, shape.q).permute(0, 2, 1, 3)  # (m, p, n, q)
    return blocks.reshape(shape.out_features, shape.in_features)
