"""The randomised search for leading singular values: a Krylov space that finds them, and probes that certify them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from soka_cli.kron.certificate import MAXIMUM_PROBES, degree_needed, excess, largest_allowed_beyond, upper_values
from soka_cli.kron.krylov import KrylovSpace, random_block
from soka_cli.kron.operator import Operator

Settled = Callable[[Tensor, Tensor, float], bool]
"""Whether singular values [count] with error bounds [count] and the total energy answer the caller's question."""

BLOCK = 16  # columns that are multiplied together; blocks of 8 are several times slower at equal basis size
FIRST_LOOK = 3  # block steps before the first look at the Ritz values
MOST_STEPS = 160  # block steps after which the search gives up
MOST_COLUMNS = 1024  # the basis restarts from its leading Ritz vectors where it would grow larger
GUARDS = (0, 16, 32)  # Ritz vectors beyond the wanted ones that may be deflated with them
FEW_PROBES = 3  # probe steps that are not worth waiting for
MANY_PROBES = 14  # probe steps that are not worth taking
MOST_PROBE_STEPS = 48
SLOWING = 0.3  # what the next few steps save of probe steps, as a share of what the last few saved
RESOLUTION = 1e-6  # share of sigma_1 below which no difference is pursued: twice fp32's own rounding of a weight of a few thousand columns
RELATIVE = 1e-2  # share of its own size to which every singular value is found, down to RESOLUTION
OVERLAP = 1e-6  # cosine up to which fp32 vectors count as orthogonal
SPOILT = 1e-4  # residual, as a share of its sigma, that is worth a product in fp64 where rounding is its cause
CHUNK_ENTRIES = 2**19  # entries of the matrix that are held in fp64 at a time: what a processor's cache holds


@dataclass(frozen=True)
class Found:
    """Leading triplets A v = sigma u with bounds.

    Args:
        left: [a, count] fp64, orthonormal columns.
        sigma: [count] fp64, descending.
        right: [b, count] fp64.
        error_bound: [count] fp64, absolute; sigma is never above the true value by more than rounding.
        residual: [count] fp64, ||A v - sigma u||; A^T u = sigma v by construction.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor
    error_bound: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Candidate:
    """Ritz values [k] and eigenvectors [size, k] of the projected operator that a probe may certify, in about `degree` steps, if the
    operator's norm on the complement is about `beyond`."""

    values: Tensor
    rotation: Tensor
    beyond: float
    degree: float


class LeadingSearch:
    """Alternates between growing the space and probing its complement until the bounds are met and the caller is settled.

    Args:
        matrix: [a, b] fp32.
        count: leading singular values that are wanted.
        energy: ||A||_F^2.
        seed: of the random blocks.
        tolerance: error bound that is wanted, as a share of sigma_1.
        settled: bounds are tightened until it says yes; None asks for no more than `tolerance`.
    """

    def __init__(self, matrix: Tensor, count: int, energy: float, seed: int, tolerance: float, settled: Settled | None) -> None:
        self.matrix, self.count, self.tolerance, self.settled = matrix, count, tolerance, settled
        self.generator = torch.Generator().manual_seed(seed)
        self.width = BLOCK if count <= 3 * BLOCK // 2 else 2 * BLOCK
        self.scale = 1.0 / float(torch.stack(torch.aminmax(matrix)).abs().max())
        self.total_energy, self.energy = energy, energy * self.scale**2  # of the matrix, and of the scaled one
        self.operator = Operator(matrix, self.scale)
        self.space = KrylovSpace(self.operator)
        self.most_columns = min(min(matrix.shape) - self.width, max(MOST_COLUMNS, 4 * (count + self.width)))
        self.block, _ = self.space.orthonormal(random_block(matrix, self.width, self.generator), self.generator)
        self.next_look = FIRST_LOOK
        self.needed_before = float("inf")

    def run(self) -> Found | None:
        """The triplets; None where no bound could be given. Bounds may be wider than wanted where the search gave up."""
        found: Found | None = None
        for _ in range(MAXIMUM_PROBES):
            candidate = self._grow()
            if candidate is None:
                break
            found = self._certify(candidate)
            if self._is_enough(found):
                break
        return found

    # ---- growing

    def _grow(self) -> Candidate | None:
        """Add blocks until the Ritz values are worth a probe; None where the space is as large as it may be."""
        while self.space.steps < MOST_STEPS and self.count + 2 * self.width <= self.most_columns:
            if self.space.size + self.block.shape[1] > self.most_columns:
                self._restart()
            self.space.extend(self.block, self.generator)
            self.block = self.space.following
            if self.space.steps >= self.next_look and self.space.size >= self.count + self.width:
                since = max(2, self.space.steps // 10)
                candidate = self._promising(since)
                hopeless = self.needed_before == float("inf")
                self.next_look = self.space.steps + (max(2, self.space.steps // 3) if hopeless else since)
                if candidate is not None:
                    return candidate
        return None

    def _restart(self) -> None:
        values, rotation = self.space.ritz_values()
        kept = min(self.count + max(GUARDS), self.most_columns // 2)
        self.space.restart(self.space.ritz_pairs(values[:kept], rotation[:, :kept]), rotation[:, :kept])
        self.block, _ = self.space.orthonormal(self.block, self.generator)

    def _promising(self, since: int) -> Candidate | None:
        """A candidate, unless more steps would save as many probe steps or the caller needs tighter bounds."""
        values, rotation = self.space.ritz_values()
        candidates = list(self._candidates(values, rotation))
        best = min(candidates, key=lambda one: one.degree)
        before, self.needed_before = self.needed_before, best.degree
        if not self._would_settle(best):
            return None
        if best.degree > FEW_PROBES and (best.degree > MANY_PROBES or SLOWING * (before - best.degree) > since):
            return None
        return best

    def _candidates(self, values: Tensor, rotation: Tensor) -> Iterator[Candidate]:
        """One for each number of guard vectors, with the degree at which a probe would certify it if N is as the Ritz values say."""
        limits = self._limits(values[: self.count])
        for guards in GUARDS:
            kept = self.count + guards
            if guards and kept + self.width > self.space.size:
                return
            projected, gram = torch.diag(values[:kept]), self._gram(rotation[:, :kept])
            room = largest_allowed_beyond(projected, gram, limits)
            beyond = self._likely_beyond(values, rotation, kept)
            left_over = max(self.energy - float(values[:kept].sum()), 0.0)
            share = room / beyond - 1 if beyond > 0.0 else float("inf")
            degree = degree_needed(share, 1.1 * left_over + BLOCK * beyond, beyond, BLOCK)
            yield Candidate(values[:kept], rotation[:, :kept], beyond, degree)

    def _gram(self, rotation: Tensor) -> Tensor:
        out = self.space.leading_out @ rotation
        return out.T @ out

    def _likely_beyond(self, values: Tensor, rotation: Tensor, kept: int) -> float:
        """What ||N|| may be: the first Ritz value that is not deflated, and as much more as its residual."""
        if kept >= len(values):
            return 0.0
        return float(values[kept] + (self.space.leading_out @ rotation[:, kept]).norm())

    def _would_settle(self, candidate: Candidate) -> bool:
        """Whether the caller would be settled, by bounds that suppose N as the Ritz values say."""
        if self.settled is None:
            return True
        upper = upper_values(torch.diag(candidate.values), self._gram(candidate.rotation), candidate.beyond, self.count)
        sigma = candidate.values[: self.count].sqrt()
        bound = (upper.sqrt() - sigma).clamp(min=RESOLUTION * float(sigma[0]))
        return bool(bound.max() <= 2 * RESOLUTION * sigma[0]) or self._settles(sigma / self.scale, bound / self.scale)

    def _allowed(self, sigma: Tensor) -> Tensor:
        """The error bound that is wanted for each."""
        largest = sigma[0]
        return torch.clamp(RELATIVE * sigma, max=self.tolerance * largest).clamp(min=RESOLUTION * largest)

    def _limits(self, values: Tensor) -> Tensor:
        sigma = values.sqrt()
        return (sigma + self._allowed(sigma)).square()

    def _is_enough(self, found: Found) -> bool:
        """Whether to stop; where not, what is asked of the next candidate is tightened."""
        met = self.is_met(found)
        if met and self._settles(found.sigma, found.error_bound):
            return True
        if met:
            if self.tolerance <= RESOLUTION:
                return True
            self.tolerance = max(RESOLUTION, self.tolerance / 30)
        self.next_look = self.space.steps + 3
        self.needed_before = float("inf")
        return False

    def _settles(self, sigma: Tensor, error_bound: Tensor) -> bool:
        return self.settled is None or self.settled(sigma, error_bound, self.total_energy)

    def is_met(self, found: Found) -> bool:
        """Whether the bounds are those that are wanted."""
        return bool((found.error_bound <= self._allowed(found.sigma)).all())

    # ---- certifying

    def _certify(self, candidate: Candidate) -> Found:
        """Triplets in fp64 from the candidate's leading vectors, bounds from its residuals and a probe of the complement."""
        pairs = self.space.ritz_pairs(candidate.values, candidate.rotation)
        expected = pairs.residuals[:, : self.count].norm(dim=0).double() / self.scale**2
        left, sigma, right, residual = refined(self.matrix, pairs.vectors[:, : self.count], expected)
        guards, leading_out = (part[:, self.count :].double() for part in (pairs.vectors, pairs.residuals))
        if guards.shape[1] and float((left.T @ guards).abs().max()) > OVERLAP:  # `refined` has turned away from the space
            guards, leading_out = guards[:, :0], leading_out[:, :0]
        inner = residual * (sigma * self.scale**2)  # (a, count): A A^T u - sigma^2 u
        beside = candidate.values[self.count : self.count + guards.shape[1]]
        projected = torch.diag(torch.cat([(sigma * self.scale).square().cpu(), beside]))
        projected[self.count :, : self.count] = (guards.T @ inner).cpu()  # the lower triangle is what eigvalsh reads
        residuals = torch.cat([inner, leading_out], 1)
        gram = (residuals.T @ residuals).cpu()
        beyond = self._probe(torch.cat([left, guards], 1).to(self.matrix), projected, gram, candidate.degree)
        upper = upper_values(projected, gram, beyond, self.count).to(sigma)
        rounding = torch.finfo(torch.float64).eps * max(self.matrix.shape) * sigma[0]
        bound = (upper.sqrt() / self.scale - sigma).clamp(min=0.0) + rounding
        return Found(left, sigma, right, bound, residual.norm(dim=0) + rounding)

    def _probe(self, deflated: Tensor, projected: Tensor, gram: Tensor, degree: float) -> float:
        """An upper bound, at MISS_PROBABILITY, of ||A A^T|| on the complement of the deflated vectors; a larger value than those
        that are wanted is added to the space."""
        values = projected.diagonal()[: self.count]
        room = largest_allowed_beyond(projected, gram, self._limits(values))
        deflated, _ = torch.linalg.qr(deflated)
        probe = KrylovSpace(self.operator, outside=deflated)
        start = self.operator.times(random_block(self.matrix.T, BLOCK, self.generator))
        block, triangle = probe.orthonormal(start, self.generator)
        moment = float(torch.linalg.matrix_norm(triangle, 2)) ** 2
        rounding = 4 * torch.finfo(self.matrix.dtype).eps * self.energy**0.5
        beyond = float("inf")
        for step in range(1, MOST_PROBE_STEPS + 1):
            if probe.size + 2 * BLOCK + deflated.shape[1] > min(self.matrix.shape):
                break
            probe.extend(block, self.generator)
            block = probe.following
            if step <= degree:
                continue
            found, rotation = probe.ritz_values()
            largest = float(found[0])
            beyond = min(beyond, ((largest * (1 + excess(step - 1, moment, largest, BLOCK))) ** 0.5 + rounding) ** 2)
            if beyond <= room:
                break
            if largest >= values[-1]:
                missed = probe.ritz_pairs(found[:BLOCK], rotation[:, :BLOCK]).vectors
                self.block, _ = self.space.orthonormal(torch.cat([self.space.following, missed], 1), self.generator)
                break
            if degree_needed(room / largest - 1, moment, largest, BLOCK) > MOST_PROBE_STEPS:
                break
        return beyond


def refined(matrix: Tensor, vectors: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rayleigh-Ritz in fp64 on the span of columns [a, k]: left [a, k], sigma [k], right [b, k] and A v - sigma u [a, k].

    A^T u = sigma v holds by construction, so A v - sigma u is the evidence. Where it is larger than `expected` [k], the norms of
    A A^T u - sigma^2 u, the rounding of fp32 products has spoilt values far below the first, and the columns are multiplied by
    A A^T once in fp64.
    """
    basis, _ = torch.linalg.qr(vectors.double())
    for _ in range(2):
        right, sigma, rotation = torch.linalg.svd(turned_product(matrix, basis), full_matrices=False)
        image = product(matrix, right)
        left = basis @ rotation.T
        residual = image - left * sigma
        norms = residual.norm(dim=0)
        if not bool(((norms * sigma > 2 * expected) & (norms > SPOILT * sigma)).any()):
            break
        basis, _ = torch.linalg.qr(image)
    return left, sigma, right, residual


def row_chunks(matrix: Tensor, entries: int = CHUNK_ENTRIES) -> Iterator[slice]:
    """Slices of rows of about `entries` entries each, so that no fp64 copy of the whole matrix is made."""
    rows = max(1, entries // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], rows):
        yield slice(start, start + rows)


def product(matrix: Tensor, columns: Tensor) -> Tensor:
    """A X in fp64."""
    rows = columns.T.contiguous()  # products of a few rows run faster than those of a few columns
    return torch.cat([rows @ matrix[part].double().T for part in row_chunks(matrix)], 1).T


def turned_product(matrix: Tensor, columns: Tensor) -> Tensor:
    """A^T X in fp64."""
    rows = columns.T.contiguous()
    total = columns.new_zeros(columns.shape[1], matrix.shape[1])
    for part in row_chunks(matrix):
        total.addmm_(rows[:, part], matrix[part].double())
    return total.T
