"""An update as a product B A of low rank: its truncated SVD, with what that leaves out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from soka_cli.kron import leading_triplets
from soka_cli.stages.updates import LowRankUpdate, Update

FIRST_LOOK = 16  # singular values that are computed before an energy is first asked for
WHOLE_SIDE = 512  # up to this smaller side all singular values cost no more than the leading ones
NOTHING = 1e-7  # share of sigma_1 below which a singular value is fp32's rounding
ROWS = 512  # rows of an update that are compared at a time


@dataclass(frozen=True)
class LowRank:
    """B A next to the update that it stands for.

    Args:
        left: B [out, r], fp32, r 0 where the update is zero.
        right: A [r, in].
        norm: ||dW||_F.
        error: ||dW - B A||_F.
    """

    left: Tensor
    right: Tensor
    norm: float
    error: float

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def relative_error(self) -> float:
        """||dW - B A|| / ||dW||; 0 for a zero update."""
        return self.error / self.norm if self.norm else 0.0


@torch.no_grad()
def low_rank(update: Update, *, rank: int | None = None, energy: float | None = None, seed: int = 0) -> LowRank:
    """The nearest product of `rank` (or fewer, where the update's own rank is lower), or the smallest that keeps `energy`.

    Of an update that is a product already, triangles of its own rank are decomposed; any other is formed, and of its SVD no more
    computed than is kept (leading_triplets).

    Args:
        update: dW [out, in].
        rank: 1 or more.
        energy: share of ||dW||_F^2, above 0, at most 1.
        seed: of the randomised solver.
    """
    if isinstance(update, LowRankUpdate):
        left, sigma, right = _of_product(update)
        kept = _kept(sigma, rank, energy, float(sigma.square().sum()))
    else:
        left, sigma, right, kept = _of_matrix(update.rows(0, update.size[0]), rank, energy, seed)
    root = sigma[:kept].sqrt()
    outer, inner = (left[:, :kept] * root).float(), (root[:, None] * right[:kept]).float()
    norm, error = _distance(update, outer, inner)
    return LowRank(outer.contiguous(), inner.contiguous(), norm, error)


def _of_product(update: LowRankUpdate) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, r], sigma [r], V^T [r, in] of scale B A, fp64, by two QR factorisations."""
    left, outer = torch.linalg.qr(update.left.double())
    right, inner = torch.linalg.qr(update.right.double().T)
    rotated, sigma, turned = torch.linalg.svd(update.scale * outer @ inner.T)
    return left @ rotated, sigma, turned @ right.T


def _of_matrix(matrix: Tensor, rank: int | None, energy: float | None, seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """The leading triplets, in double as many as long as the energy is not reached; and how many of them are kept."""
    side = min(matrix.shape)
    count = min(rank, side) if rank is not None else side if side <= WHOLE_SIDE else FIRST_LOOK
    while True:
        found = leading_triplets(matrix, count, seed=seed)
        kept = _kept(found.sigma, rank, energy, found.total_energy)
        if kept < count or count == side or rank is not None:
            return found.left.double().T, found.sigma, found.right.double(), kept
        count = min(2 * count, side)


def _kept(sigma: Tensor, rank: int | None, energy: float | None, total: float) -> int:
    """How many of the singular values [k] stay; all k where the energy lies beyond them."""
    own = int((sigma > NOTHING * sigma[0]).sum()) if len(sigma) else 0
    if rank is not None or energy is None:
        return min(rank or own, own)
    reached = sigma.square().cumsum(0) >= energy * total * (1 - 1e-12)
    return min(int(reached.to(torch.uint8).argmax()) + 1 if reached.any() else len(sigma), own)


def _distance(update: Update, left: Tensor, right: Tensor) -> tuple[float, float]:
    """||dW|| and ||dW - B A|| in fp64, of the factors as they are stored."""
    norm = error = 0.0
    for first in range(0, update.size[0], ROWS):
        last = min(first + ROWS, update.size[0])
        rows = update.rows(first, last).double()
        norm += float(rows.square().sum())
        error += float((rows - left[first:last].double() @ right.double()).square().sum())
    return norm**0.5, error**0.5
