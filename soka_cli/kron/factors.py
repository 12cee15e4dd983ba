"""A weight's leading Kronecker terms, and how they are found: rearrange, solve, choose the rank, fix the signs."""

import hashlib
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from soka_cli.kron.leading import row_chunks
from soka_cli.kron.rank import RankChoice, RankRule, choose_rank
from soka_cli.kron.rearrange import rearrange
from soka_cli.kron.shape import KronShape
from soka_cli.kron.solver import Triplets, leading_triplets


@dataclass
class KronFactors:
    """K = sum_k sigma_k U_k (x) V_k.

    Args:
        left: U, [r, m, n], each of Frobenius norm 1 where it comes from a decomposition.
        right: V, [r, p, q], likewise.
        sigma: [r].

    Raises:
        ValueError: the three do not fit together.
    """

    left: Tensor
    right: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        sizes = [tuple(part.shape) for part in (self.left, self.right, self.sigma)]
        if [len(size) for size in sizes] != [3, 3, 1] or len({size[0] for size in sizes}) != 1:
            raise ValueError(f"factors of {sizes[0]}, {sizes[1]} and {sizes[2]} do not fit: expected [r, m, n], [r, p, q] and [r]")

    @property
    def rank(self) -> int:
        return len(self.sigma)

    @property
    def shape(self) -> KronShape:
        _, m, n = self.left.shape
        _, p, q = self.right.shape
        return KronShape(m, n, p, q)

    def leading(self, rank: int) -> "KronFactors":
        """The first terms alone, in tensors of their own."""
        return KronFactors(self.left[:rank].clone(), self.right[:rank].clone(), self.sigma[:rank].clone())

    def with_sigma_split(self) -> "KronFactors":
        """The same sum with sqrt(sigma) folded into both factors, and every sigma 1."""
        root = self.sigma.sqrt()[:, None, None]
        return KronFactors(root * self.left, root * self.right, torch.ones_like(self.sigma))

    def with_rms_one(self) -> "KronFactors":
        """The same sum with factors of norm 1 scaled to entries of root mean square 1, and sigma divided by as much."""
        left, right = self.left[0].numel() ** 0.5, self.right[0].numel() ** 0.5
        return KronFactors(left * self.left, right * self.right, self.sigma / (left * right))


@dataclass
class Decomposition:
    """What is known of one weight after decomposing it.

    Args:
        factors: the kept terms, fp32.
        spectrum: [k] computed singular values of R(W), descending, fp64; k is at least the rank.
        error_bound: [k] absolute error of each.
        choice: the rank and what decided it.
        shape: sizes of the factors.
        total_energy: ||W||_F^2.
        relative_error: ||W - K|| / ||W||, of the fp32 factors; 0 for a zero weight.
        sigma_error_bound: absolute, the largest over the kept terms.
        seconds: the solver's time.
    """

    factors: KronFactors
    spectrum: Tensor
    error_bound: Tensor
    choice: RankChoice
    shape: KronShape
    total_energy: float
    relative_error: float
    sigma_error_bound: float
    seconds: float


def decompose_weight(weight: Tensor, shape: KronShape, rule: RankRule, *, seed: int) -> Decomposition:
    """The leading Kronecker terms of a weight, as many as the rule gives.

    The weight is read as fp32, so one held in bf16 and its fp32 copy give the same terms. Signs: the entry of U_k with the
    largest magnitude is positive.

    Args:
        weight: [out, in], any floating type and device; the factors stay on that device.
        shape: sizes of the factors.
        rule: what decides the rank.
        seed: of the randomised solver; see `module_seed`.

    Raises:
        ValueError: a weight of another size, or one that holds NaN or infinity (names the first bad index).
    """
    weight = weight.detach().to(torch.float32)
    refuse_non_finite(weight)
    matrix = rearrange(weight, shape)
    del weight
    started = perf_counter()

    def settled(sigma: Tensor, error_bound: Tensor, energy: float) -> bool:
        return rule.is_settled(sigma, error_bound, energy, shape)

    triplets = leading_triplets(matrix, rule.wanted_sigmas(shape.max_rank), seed=seed, settled=settled)
    seconds = perf_counter() - started
    choice = choose_rank(triplets.sigma, triplets.error_bound, triplets.total_energy, rule, shape)
    factors = _signed_factors(triplets, choice.rank, shape)
    return Decomposition(
        factors=factors,
        spectrum=triplets.sigma.cpu(),
        error_bound=triplets.error_bound.cpu(),
        choice=choice,
        shape=shape,
        total_energy=triplets.total_energy,
        relative_error=_relative_error(matrix, factors, triplets.total_energy),
        sigma_error_bound=float(triplets.error_bound[: choice.rank].max()),
        seconds=seconds,
    )


def module_seed(seed: int, module_name: str) -> int:
    """A module's own seed from the recipe's: a digest, so that order, processes and devices do not matter."""
    digest = hashlib.sha256(f"{seed}\0{module_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes signed 64-bit seeds


def refuse_non_finite(weight: Tensor) -> None:
    """ValueError that names the first bad index."""
    if (index := first_non_finite(weight)) is not None:
        raise ValueError(f"the weight is not finite: {weight[index].item()} at index {index}")


def first_non_finite(tensor: Tensor) -> tuple[int, ...] | None:
    """Where the first NaN or infinity stands, None where there is none; by the extremes first, which carry a NaN on."""
    low, high = torch.aminmax(tensor)
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return None
    first = torch.isfinite(tensor).flatten().to(torch.uint8).argmin()
    return tuple(int(one) for one in torch.unravel_index(first, tensor.shape))


def _signed_factors(triplets: Triplets, rank: int, shape: KronShape) -> KronFactors:
    left, right = triplets.left[:rank], triplets.right[:rank]
    peak = left.gather(1, left.abs().argmax(1, keepdim=True))  # (r, 1)
    sign = torch.where(peak < 0, -1.0, 1.0).to(left)
    return KronFactors(
        left=(left * sign).reshape(rank, shape.m, shape.n),
        right=(right * sign).reshape(rank, shape.p, shape.q),
        sigma=triplets.sigma[:rank].to(torch.float32),
    )


def _relative_error(matrix: Tensor, factors: KronFactors, total_energy: float) -> float:
    """||W - K|| / ||W|| on the rearranged side, a few rows at a time."""
    if total_energy == 0.0:
        return 0.0
    left = (factors.sigma[:, None] * factors.left.flatten(1)).T.double()  # (m*n, r)
    right = factors.right.flatten(1).double()
    lost = sum(float((matrix[rows].double() - left[rows] @ right).square().sum()) for rows in row_chunks(matrix))
    return float((lost / total_energy) ** 0.5)
