"""Leading singular triplets of a matrix, each singular value with an error bound."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["auto", "exact", "randomised"]

EXACT_SIDE = 1024  # up to this smaller side the Gram matrix and eigh cost about a second: no randomness needed
SVD_SIDE = 256  # up to this smaller side a full SVD in fp64 is as cheap as the Gram matrix, and more accurate
BLOCK = 16  # columns that are multiplied together; blocks of 8 are several times slower at equal basis size
CHECK_EVERY = 4  # block steps between looks at the residuals
PROBE_STEPS = 4  # block steps that a fresh random block is given after convergence
TOLERANCE = 1e-5  # residual at which the iteration stops, as a share of sigma_1
FLOOR = 0.1  # below this share of sigma_1, fp32 products leave about TOLERANCE * FLOOR * sigma_1^2 of noise
VANISHED = 1e-5  # share of a unit column left after projection that is rounding noise
CHUNK_ENTRIES = 2**22  # entries of the matrix that are held in fp64 at a time


@dataclass(frozen=True)
class Triplets:
    """A v_k = sigma_k u_k for the leading k.

    Args:
        left: [count, a] fp32, rows orthonormal.
        sigma: [count] fp64, descending.
        right: [count, b] fp32, rows orthonormal.
        error_bound: [count] fp64, absolute error of each sigma.
        total_energy: ||A||_F^2, summed in fp64.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor
    error_bound: Tensor
    total_energy: float


@torch.no_grad()
def leading_triplets(matrix: Tensor, count: int, *, seed: int, method: Method = "auto") -> Triplets:
    """The `count` largest singular values of a matrix with their vectors.

    exact takes a full SVD or the eigenvectors of the Gram matrix of the smaller side, in fp64, and reads no seed.
    randomised is block Krylov with full re-orthogonalisation in fp32, started from a seeded random block; after
    convergence a fresh random block looks for copies of repeated values that the first could not see. Where it does not
    converge it hands over to exact. Both end with a Rayleigh-Ritz step and residuals in fp64. auto takes exact where the
    smaller side or the count makes that cheap.

    Args:
        matrix: [a, b], any floating type and device.
        count: 1 to min(a, b).
        seed: of the random blocks, drawn on the CPU so that devices agree on the start.
        method: auto, exact or randomised.

    Raises:
        ValueError: a count or method that there is not, or a matrix that is not finite.
    """
    side = min(matrix.shape)
    if not 1 <= count <= side:
        raise ValueError(f"count {count} is not between 1 and {side}, the smaller side of a {tuple(matrix.shape)} matrix")
    if method not in ("auto", "exact", "randomised"):
        raise ValueError(f"method {method!r} is none of: auto, exact, randomised")
    energy = sum(float(matrix[rows].double().square().sum()) for rows in row_chunks(matrix))
    if not energy < float("inf"):
        raise ValueError("the matrix holds a value that is not finite")
    if energy == 0.0:
        return _certified(matrix, torch.eye(matrix.shape[0], count, device=matrix.device), energy, count)
    if method == "exact" or (method == "auto" and (side <= EXACT_SIDE or count > side // 8)):
        return _exact(matrix, count, energy)
    basis = _krylov_basis(matrix.float(), count, seed)
    triplets = _certified(matrix, basis, energy, count) if basis is not None else None
    return triplets if triplets is not None and _is_accurate(triplets) else _exact(matrix, count, energy)


def row_chunks(matrix: Tensor) -> Iterator[slice]:
    """Slices of rows of about CHUNK_ENTRIES entries each, so that no fp64 copy of the whole matrix is made."""
    rows = max(1, CHUNK_ENTRIES // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], rows):
        yield slice(start, start + rows)


def _exact(matrix: Tensor, count: int, energy: float) -> Triplets:
    if matrix.shape[0] > matrix.shape[1]:
        turned = _exact(matrix.T, count, energy)
        return Triplets(turned.right, turned.sigma, turned.left, turned.error_bound, energy)
    side = matrix.shape[0]
    if side <= SVD_SIDE or count > side // 2:
        left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        return _with_bounds(matrix, left[:, :count], sigma[:count], right[:count].T, energy)
    gram = sum((matrix[:, part].double() @ matrix[:, part].double().T for part in row_chunks(matrix.T)), start=torch.zeros(()))
    _, vectors = torch.linalg.eigh(gram)
    triplets = _certified(matrix, vectors[:, -count:].flip(1), energy, count)
    # eigh knows each sigma^2 to rounding * sigma_1^2, so no larger one is missing by more than this
    rounding = torch.finfo(torch.float64).eps * max(matrix.shape)
    squared = rounding * triplets.sigma[0].square()
    missed = torch.minimum(squared.sqrt(), squared / triplets.sigma.clamp(min=torch.finfo(torch.float64).tiny))
    return Triplets(triplets.left, triplets.sigma, triplets.right, triplets.error_bound + missed, energy)


def _certified(matrix: Tensor, basis: Tensor, energy: float, count: int) -> Triplets:
    """Rayleigh-Ritz in fp64 on the span of a left basis [a, count or more]: A^T u = sigma v holds by construction.

    Where sigma falls far below sigma_1, the basis, made of fp32 products, is first multiplied by A A^T once in fp64.
    """
    basis, _ = torch.linalg.qr(basis.double())
    projected = _turned_product(matrix, basis)  # (b, count)
    right, sigma, rotation = torch.linalg.svd(projected, full_matrices=False)
    if bool(sigma[count - 1] < FLOOR * sigma[0]):
        basis, _ = torch.linalg.qr(torch.cat([matrix[rows].double() @ right for rows in row_chunks(matrix)]))
        right, sigma, rotation = torch.linalg.svd(_turned_product(matrix, basis), full_matrices=False)
    left = basis @ rotation[:count].T
    return _with_bounds(matrix, left, sigma[:count], right[:, :count], energy)


def _turned_product(matrix: Tensor, columns: Tensor) -> Tensor:
    """A^T X in fp64, a few rows of A at a time."""
    return sum((matrix[rows].double().T @ columns[rows] for rows in row_chunks(matrix)), start=torch.zeros(()))


def _with_bounds(matrix: Tensor, left: Tensor, sigma: Tensor, right: Tensor, energy: float) -> Triplets:
    """Triplets from fp64 columns, with the residuals of both sides: one alone may vanish by construction."""
    forward = right.new_zeros(len(sigma))
    backward = -right * sigma
    for rows in row_chunks(matrix):
        part = matrix[rows].double()
        forward += (part @ right - left[rows] * sigma).square().sum(0)
        backward += part.T @ left[rows]
    residual = ((forward + backward.square().sum(0)) / 2).sqrt()
    rounding = torch.finfo(torch.float64).eps * max(matrix.shape) * sigma[0]
    bound = _clustered_bound(sigma, residual + rounding)
    return Triplets(left.T.float().contiguous(), sigma, right.T.float().contiguous(), bound, energy)


def _clustered_bound(sigma: Tensor, residual: Tensor) -> Tensor:
    """An error bound for each sigma from residuals r_k of orthonormal vectors.

    With H = [[0, A], [A^T, 0]] and unit vectors [u; v] / sqrt 2, as many singular values as a group has members lie within
    the Frobenius norm of the group's residual of its sigmas (Kahan; Parlett, The Symmetric Eigenvalue Problem, 11.5). Groups
    whose intervals are disjoint hold different singular values; groups that overlap are joined.
    """
    groups: list[tuple[list[float], float]] = []  # the sigmas, the sum of squared residuals
    for value, square in zip(sigma.tolist(), residual.square().tolist(), strict=True):
        members, total = [value], square
        while groups and groups[-1][0][-1] - groups[-1][1] ** 0.5 <= members[0] + total**0.5:
            above, above_total = groups.pop()
            members, total = above + members, above_total + total
        groups.append((members, total))
    return sigma.new_tensor([total**0.5 for members, total in groups for _ in members])


def _is_accurate(triplets: Triplets) -> bool:
    """Whether fp32 products were enough: values far below sigma_1 drown in their rounding noise."""
    allowed = torch.maximum(1e-2 * triplets.sigma, 1e-6 * triplets.sigma[0])
    return bool((triplets.error_bound <= allowed.clamp(min=10 * TOLERANCE * triplets.sigma[0])).all())


def _krylov_basis(matrix: Tensor, count: int, seed: int) -> Tensor | None:
    """Leading left singular directions [a, count + BLOCK] in fp32, or None where a basis that costs more than `exact` did not suffice."""
    generator = torch.Generator().manual_seed(seed)
    space = _KrylovSpace(matrix)
    side = min(matrix.shape)
    largest = min(side, max(side // 2, EXACT_SIDE))
    block = _random_block(matrix, generator)
    found: Tensor | None = None  # sigmas at the last convergence, which a fresh block then has to confirm
    next_check = CHECK_EVERY
    while space.size + BLOCK <= largest:
        block = space.extend(space.new_directions(block, generator))
        if space.steps < next_check or space.size < count + BLOCK:
            continue
        next_check = space.steps + CHECK_EVERY
        sigma, vectors, converged = space.leading(count, count + BLOCK)
        if not converged:
            continue
        if found is not None and bool((sigma - found).abs().max() <= TOLERANCE * sigma[0]):
            return vectors
        found, block, next_check = sigma, _random_block(matrix, generator), space.steps + PROBE_STEPS
    return None


def _random_block(matrix: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(matrix.shape[0], BLOCK, generator=generator).to(matrix.device)


class _KrylovSpace:
    """An orthonormal left basis Q with A^T Q, A A^T Q and the projected Q^T A A^T Q."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.inverse_scale = 1.0 / matrix.abs().max()  # keeps squares of very large and very small weights inside fp32
        self.basis = matrix.new_empty(matrix.shape[0], 0)
        self.image = matrix.new_empty(matrix.shape[1], 0)  # A^T Q
        self.returned = matrix.new_empty(matrix.shape[0], 0)  # A A^T Q
        self.projected = matrix.new_empty(0, 0, dtype=torch.float64)
        self.steps = 0

    @property
    def size(self) -> int:
        return self.basis.shape[1]

    def extend(self, block: Tensor) -> Tensor:
        """Adds orthonormal columns; gives A A^T of them, where the next block lies."""
        image = (self.matrix.T @ block) * self.inverse_scale
        returned = (self.matrix @ image) * self.inverse_scale
        self.basis = torch.cat([self.basis, block], 1)
        self.image = torch.cat([self.image, image], 1)
        self.returned = torch.cat([self.returned, returned], 1)
        border = (self.image.T @ image).double()  # (size, block)
        corner = torch.cat([self.projected, border[: -block.shape[1]].T], 0)
        self.projected = torch.cat([corner, border], 1)
        self.steps += 1
        return returned

    def new_directions(self, block: Tensor, generator: torch.Generator) -> Tensor:
        """Orthonormal columns of the block outside the basis; random ones in place of those that lie inside it."""
        block = block / block.norm(dim=0).clamp(min=torch.finfo(block.dtype).tiny)
        block, triangle = torch.linalg.qr(block - self.basis @ (self.basis.T @ block))
        inside = triangle.diagonal().abs() < VANISHED
        if bool(inside.any()):
            block = torch.where(inside, _random_block(self.matrix, generator), block)
        for _ in range(2):
            block, _ = torch.linalg.qr(block - self.basis @ (self.basis.T @ block))
        return block

    def leading(self, count: int, kept: int) -> tuple[Tensor, Tensor, bool]:
        """Ritz values [count], left Ritz vectors [a, kept], and whether the residuals of the first `count` are small enough."""
        squares, rotation = torch.linalg.eigh((self.projected + self.projected.T) / 2)
        squares = squares[-count:].flip(0).clamp(min=0.0)
        rotation = rotation[:, -kept:].flip(1).to(self.basis.dtype)
        sigma, vectors = squares.sqrt(), self.basis @ rotation
        residual = (self.returned @ rotation[:, :count] - vectors[:, :count] * squares.to(vectors.dtype)).norm(dim=0).double()
        allowed = TOLERANCE * sigma[0] * torch.maximum(sigma, FLOOR * sigma[0])
        return sigma, vectors, bool((residual <= allowed).all())
