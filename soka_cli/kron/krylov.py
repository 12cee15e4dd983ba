"""A block Krylov space of A A^T: an orthonormal basis, the operator projected on it, and what leads out of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from soka_cli.kron.operator import Operator

VANISHED = 1e-5  # share of a unit column left after projection that is rounding noise


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of A A^T, the largest first.

    Args:
        values: [k] fp64, at least the squares of singular values' lower bounds.
        vectors: [a, k] in the matrix's type, orthonormal to rounding.
        residuals: [a, k], A A^T y - theta y, which lies outside the space.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class KrylovSpace:
    """Grows by blocks Q_1, Q_2, ... with A A^T Q_j orthogonalised against all before it, twice, in the matrix's type.

    With Q = [Q_1 ... Q_s] and T = Q^T A A^T Q, A A^T Q = Q T + following leading_out, where `following` [a, w] is orthonormal and
    outside the space: the next block. A space `outside` of given columns E is that of (I - E E^T) A A^T (I - E E^T).

    Args:
        operator: of a matrix [a, b] fp32, a <= b for the least work, scaled so that squares stay inside fp32.
        outside: [a, e] orthonormal columns.
    """

    def __init__(self, operator: Operator, outside: Tensor | None = None) -> None:
        self.operator = operator
        matrix = operator.matrix
        self.outside = matrix.new_empty(matrix.shape[0], 0) if outside is None else outside
        self._rows = matrix.new_empty(256, matrix.shape[0])
        self.size = 0
        self.steps = 0
        self.projected = torch.zeros(0, 0, dtype=torch.float64)  # T, on the CPU
        self.following = matrix.new_empty(matrix.shape[0], 0)
        self.leading_out = torch.zeros(0, 0, dtype=torch.float64)  # (w, size), on the CPU

    @property
    def basis(self) -> Tensor:
        """Q, [a, size]."""
        return self._rows[: self.size].T

    def extend(self, block: Tensor, generator: torch.Generator) -> None:
        """Add orthonormal columns [a, w] that are orthogonal to the space; `following` is then where the next block lies."""
        width = block.shape[1]
        self._append(block)
        returned = self.operator.times(self.operator.turned_times(block))  # (a, w)
        self.following, triangle, inside = self._orthonormal(returned, generator)
        coefficients = inside.cpu().double()
        grown = torch.zeros(self.size, self.size, dtype=torch.float64)
        grown[:-width, :-width] = self.projected
        grown[:, -width:] = coefficients
        grown[-width:, :-width] = coefficients[:-width].T
        corner = grown[-width:, -width:]
        grown[-width:, -width:] = (corner + corner.T) / 2
        self.projected = grown
        self.leading_out = torch.cat([torch.zeros(width, self.size - width, dtype=torch.float64), triangle.cpu().double()], 1)
        self.steps += 1

    def orthonormal(self, block: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """X, R with X R = the block projected out of the space, X orthonormal; random columns stand in where it vanished."""
        columns, triangle, _ = self._orthonormal(block, generator)
        return columns, triangle

    def _orthonormal(self, block: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """X, R and the part that lies in the space, P [size, w]: the block is Q P + X R, but for what lies in `outside`.

        Projected, orthonormalised and both once more, which is enough: what is left in the space after the first time is rounding, by
        as much larger as columns shrank, at most 1 / VANISHED.
        """
        norms = block.norm(dim=0).clamp(min=torch.finfo(block.dtype).tiny)
        part = self.basis.T @ block  # (size, w)
        columns, triangle = torch.linalg.qr(self._off_outside(block - self.basis @ part) / norms)
        vanished = triangle.diagonal().abs() < VANISHED
        if bool(vanished.any()):
            fresh = random_block(self.operator.matrix, block.shape[1], generator)
            columns, turned = torch.linalg.qr(self._off(torch.where(vanished, fresh, columns)))
            triangle = turned @ torch.where(vanished[:, None], torch.zeros_like(triangle), triangle)
        missed = self.basis.T @ columns
        columns, again = torch.linalg.qr(self._off_outside(columns - self.basis @ missed))
        triangle = triangle * norms
        return columns, again @ triangle, part + missed @ triangle

    def ritz_values(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T, descending, and its eigenvectors [size, size] in that order."""
        values, rotation = torch.linalg.eigh(self.projected)
        return values.flip(0).clamp(min=0.0), rotation.flip(1)

    def ritz_pairs(self, values: Tensor, rotation: Tensor) -> RitzPairs:
        """The pairs that eigenvalues [k] and eigenvectors [size, k] of T stand for."""
        residuals = self.following @ (self.leading_out @ rotation).to(self._rows)
        return RitzPairs(values, self.basis @ rotation.to(self._rows), residuals)

    def restart(self, pairs: RitzPairs, rotation: Tensor) -> None:
        """Keep these Ritz pairs alone, and `following`; what the rest held is found again where it matters."""
        self.size = 0
        self._append(pairs.vectors)
        self.projected = torch.diag(pairs.values)
        self.leading_out = self.leading_out @ rotation

    def _append(self, block: Tensor) -> None:
        needed = self.size + block.shape[1]
        if needed > len(self._rows):
            larger = self._rows.new_empty(max(needed, 2 * len(self._rows)), self._rows.shape[1])
            larger[: self.size] = self._rows[: self.size]
            self._rows = larger
        self._rows[self.size : needed] = block.T
        self.size = needed

    def _off(self, block: Tensor) -> Tensor:
        basis = self.basis
        return self._off_outside(block - basis @ (basis.T @ block))

    def _off_outside(self, block: Tensor) -> Tensor:
        return block - self.outside @ (self.outside.T @ block) if self.outside.shape[1] else block


def random_block(matrix: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """[a, columns] Gaussian, drawn on the CPU so that devices agree."""
    return torch.randn(matrix.shape[0], columns, generator=generator).to(matrix)
