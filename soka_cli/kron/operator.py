"""A matrix as an operator on blocks of columns, laid out once for the many products of a search."""

import torch
from torch import Tensor

PLAIN_PRODUCTS = 2  # products by each side before the matrix is packed for it: what a packing costs, about
PACKED_ENTRIES = 2**20  # entries below which packing gains nothing


class Operator:
    """A X and A^T X for blocks X of a few columns, in the matrix's type.

    A product with few columns is bound by how the matrix is read. oneDNN packs a weight once for products of that many columns, as
    PyTorch does for a linear layer that is compiled; each product then takes about half the time of a plain one. The packed copies
    are as large as the matrix, one for each side. Without oneDNN, on other devices and for small matrices the products are plain.

    Args:
        matrix: [a, b], any floating type and device.
        scale: what the matrix is multiplied by; all figures are of the scaled matrix.
    """

    def __init__(self, matrix: Tensor, scale: float) -> None:
        self.matrix, self.scale = matrix, scale
        self._sides = (Side(matrix), Side(matrix.T))

    def times(self, columns: Tensor) -> Tensor:
        """A X, [a, w], for X [b, w]."""
        return self._sides[0].times(columns) * self.scale

    def turned_times(self, columns: Tensor) -> Tensor:
        """A^T X, [b, w], for X [a, w]."""
        return self._sides[1].times(columns) * self.scale


class Side:
    """One matrix and, after a few products, its packed copy."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.done = 0
        self._packed: Tensor | None = None

    def times(self, columns: Tensor) -> Tensor:
        if self.done == PLAIN_PRODUCTS and can_pack(self.matrix):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.matrix, columns.shape[1])
        self.done += 1
        if self._packed is None:
            return self.matrix @ columns
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(columns.T.contiguous(), self._packed, None, "none", [], "")  # (w, a)
        return rows.T


def can_pack(matrix: Tensor) -> bool:
    """Whether oneDNN is there and the matrix is one that gains by it."""
    return (
        matrix.device.type == "cpu"
        and matrix.dtype == torch.float32
        and matrix.numel() >= PACKED_ENTRIES
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )
