"""Leading singular triplets of a matrix, each singular value with an error bound."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soka_cli.kron.certificate import clustered_bound
from soka_cli.kron.leading import LeadingSearch, Settled, product, row_chunks, turned_product

Method = Literal["auto", "exact", "randomised"]

EXACT_SIDE = 512  # up to this smaller side the Gram matrix and eigh cost less than a random search
SVD_SIDE = 256  # up to this smaller side a full SVD in fp64 is as cheap as the Gram matrix, and more accurate
EXACT_LIMIT = 6144  # up to this smaller side the exact way is taken where a search found no bound that is wanted
GRAM_ENTRIES = 2**22  # entries that are held in fp64 at a time for the Gram matrix
TOLERANCE = 1e-5  # error bound that is wanted, as a share of sigma_1


@dataclass(frozen=True)
class Triplets:
    """A v_k = sigma_k u_k for the leading k.

    Args:
        left: [count, a] fp32, rows orthonormal.
        sigma: [count] fp64, descending.
        right: [count, b] fp32, rows orthonormal.
        error_bound: [count] fp64, absolute error of each sigma; of second order in the residual where a gap allows it.
        residual: [count] fp64, ||A v - sigma u|| and ||A^T u - sigma v|| are at most this.
        total_energy: ||A||_F^2, summed in fp64.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor
    error_bound: Tensor
    residual: Tensor
    total_energy: float


@torch.no_grad()
def leading_triplets(
    matrix: Tensor, count: int, *, seed: int, method: Method = "auto", tolerance: float = TOLERANCE, settled: Settled | None = None
) -> Triplets:
    """The `count` largest singular values of a matrix with their vectors.

    exact takes a full SVD or the eigenvectors of the Gram matrix of the smaller side, in fp64, and reads no seed.
    randomised is a block Krylov method with full re-orthogonalisation in fp32, started from a seeded random block; its values
    and residuals are then computed in fp64, and a fresh random block probes what lies outside them, which gives each value a
    bound that holds but for a probability of 1e-9 (`certificate`). Where it does not get there it hands over to exact. auto takes
    exact where the smaller side or the count makes that cheap.

    Args:
        matrix: [a, b], any floating type and device.
        count: 1 to min(a, b).
        seed: of the random blocks, drawn on the CPU so that devices agree on the start.
        method: auto, exact or randomised.
        tolerance: error bound that is wanted, as a share of sigma_1. Each value is also found to 1% of its own size, and none more
            closely than 1e-6 sigma_1 if not by luck.
        settled: asked with singular values [count], error bounds [count] and the total energy; bounds are tightened until it says
            yes, or as far as fp32 products allow. None asks for no more than `tolerance`.

    Raises:
        ValueError: a count or method that there is not, or a matrix that is not finite.
    """
    side = min(matrix.shape)
    if not 1 <= count <= side:
        raise ValueError(f"count {count} is not between 1 and {side}, the smaller side of a {tuple(matrix.shape)} matrix")
    if method not in ("auto", "exact", "randomised"):
        raise ValueError(f"method {method!r} is none of: auto, exact, randomised")
    energy = sum(float(matrix[rows].double().square_().sum()) for rows in row_chunks(matrix))
    if not energy < float("inf"):
        raise ValueError("the matrix holds a value that is not finite")
    if energy == 0.0:
        return _ritz(matrix, torch.eye(matrix.shape[0], count, device=matrix.device), energy, count)
    if method == "exact" or (method == "auto" and (side <= EXACT_SIDE or count > side // 8)):
        return _exact(matrix, count, energy)
    return _searched(matrix, count, energy, seed, tolerance, settled)


def _searched(matrix: Tensor, count: int, energy: float, seed: int, tolerance: float, settled: Settled | None) -> Triplets:
    """By LeadingSearch on the smaller side; by the exact way where that is possible and the search gave up."""
    turned = matrix.shape[0] > matrix.shape[1]
    search = LeadingSearch((matrix.T if turned else matrix).float(), count, energy, seed, tolerance, settled)
    found = search.run()
    if found is None or (not search.is_met(found) and min(matrix.shape) <= EXACT_LIMIT):
        return _exact(matrix, count, energy)
    left, right = (part.T.float().contiguous() for part in ((found.right, found.left) if turned else (found.left, found.right)))
    return Triplets(left, found.sigma, right, found.error_bound, found.residual, energy)


def _exact(matrix: Tensor, count: int, energy: float) -> Triplets:
    if matrix.shape[0] > matrix.shape[1]:
        turned = _exact(matrix.T, count, energy)
        return Triplets(turned.right, turned.sigma, turned.left, turned.error_bound, turned.residual, energy)
    side = matrix.shape[0]
    if side <= SVD_SIDE or count > side // 2:
        left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        return _with_bounds(matrix, left[:, :count], sigma[:count], right[:count].T, energy)
    gram = sum((part @ part.T for part in (matrix[:, rows].double() for rows in row_chunks(matrix.T, GRAM_ENTRIES))), start=torch.zeros(()))
    _, vectors = torch.linalg.eigh(gram)
    triplets = _ritz(matrix, vectors[:, -count:].flip(1), energy, count)
    # eigh knows each sigma^2 to rounding * sigma_1^2, so no larger one is missing by more than this
    rounding = torch.finfo(torch.float64).eps * max(matrix.shape)
    squared = rounding * triplets.sigma[0].square()
    missed = torch.minimum(squared.sqrt(), squared / triplets.sigma.clamp(min=torch.finfo(torch.float64).tiny))
    return Triplets(triplets.left, triplets.sigma, triplets.right, triplets.error_bound + missed, triplets.residual, energy)


def _ritz(matrix: Tensor, basis: Tensor, energy: float, count: int) -> Triplets:
    """Rayleigh-Ritz in fp64 on the span of a left basis [a, count]: A^T u = sigma v holds by construction."""
    basis, _ = torch.linalg.qr(basis.double())
    right, sigma, rotation = torch.linalg.svd(turned_product(matrix, basis), full_matrices=False)
    return _with_bounds(matrix, basis @ rotation[:count].T, sigma[:count], right[:, :count], energy)


def _with_bounds(matrix: Tensor, left: Tensor, sigma: Tensor, right: Tensor, energy: float) -> Triplets:
    """Triplets from fp64 columns that no larger value is missing from, with the residuals of both sides."""
    forward = (product(matrix, right) - left * sigma).square().sum(0)
    backward = (turned_product(matrix, left) - right * sigma).square().sum(0)
    rounding = torch.finfo(torch.float64).eps * max(matrix.shape) * sigma[0]
    bound = clustered_bound(sigma, ((forward + backward) / 2).sqrt() + rounding)
    residual = torch.maximum(forward, backward).sqrt() + rounding
    return Triplets(left.T.float().contiguous(), sigma, right.T.float().contiguous(), bound, residual, energy)
