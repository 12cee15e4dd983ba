"""What an adapter adds to one weight matrix, a few rows at a time: from its factors, or from a matrix that PEFT made of them."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from soka_cli.kron import KronSum, kron_dense


class Update(Protocol):
    """An update of a weight of `size` rows and columns, laid out as the weight is stored."""

    @property
    def size(self) -> tuple[int, int]: ...

    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (excluded), fp32."""
        ...


@dataclass(frozen=True)
class KronUpdate:
    """scale * (K_1 + K_2 + ...), Kronecker sums of one shape: K(theta) - K(theta0) of SoKA, or the one term of LoKr."""

    sums: tuple[KronSum, ...]
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        left, right, _ = self.sums[0]
        return left.shape[1] * right.shape[1], left.shape[2] * right.shape[2]

    def rows(self, first: int, last: int) -> Tensor:
        """Whole rows of U where they are wanted whole, so that no more is formed than is asked for."""
        height = self.sums[0][1].shape[1]  # rows that one row of U becomes
        parts = []
        while first < last:
            row, offset = divmod(first, height)
            whole = (last - first) // height if offset == 0 else 0
            count, stop = (whole, first + whole * height) if whole else (1, min(last, (row + 1) * height))
            inner = slice(0, height) if whole else slice(offset, offset + stop - first)
            parts.append(self._dense(slice(row, row + count), inner))
            first = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _dense(self, outer: slice, inner: slice) -> Tensor:
        matrices = [kron_dense(left[:, outer], right[:, inner], sigma) for left, right, sigma in self.sums]
        total = sum(matrices[1:], start=matrices[0])
        return total if self.scale == 1.0 else total * self.scale


@dataclass(frozen=True)
class LowRankUpdate:
    """scale * B A with `left` B [out, r] and `right` A [r, in]: LoRA's."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        return self.left[first:last] @ self.right * self.scale


@dataclass(frozen=True)
class DenseUpdate:
    """A matrix that is there whole."""

    matrix: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        return self.matrix[first:last]
