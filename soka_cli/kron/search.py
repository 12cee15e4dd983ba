"""Which pair of divisors suits a matrix: the energy that each shape's terms keep for the same number of parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from soka_cli.kron.factors import refuse_non_finite
from soka_cli.kron.rank import RankRule
from soka_cli.kron.rearrange import rearrange
from soka_cli.kron.shape import KronShape, affordable, balanced
from soka_cli.kron.solver import leading_triplets

FINALISTS = 4
GAIN = 0.1  # share of energy that a shape must keep beyond the balanced one; over the shapes of pure noise it varies by up to 7%
SKETCH_BLOCKS = 3  # at 3 blocks a sketch misses up to a tenth of a flat spectrum's energy, of every shape about alike
SKETCH_COLUMNS = 8  # columns of a block beyond the terms that are asked for


@dataclass(frozen=True)
class ShapeCandidate:
    """One shape at the search's budget.

    Args:
        shape: sizes of the factors.
        terms: how many of them the budget pays for.
        sketch_energy: of these leading terms, sum of sigma_k^2, a cheap estimate from below.
        energy: the same from the certified solver, None where the sketch ruled the shape out.
        error_bound: absolute, of `energy`.
    """

    shape: KronShape
    terms: int
    sketch_energy: float
    energy: float | None = None
    error_bound: float | None = None


@dataclass(frozen=True)
class ShapeSearch:
    """What a search compared and what it took.

    Args:
        parameters: the budget that every candidate may spend.
        total_energy: ||W||_F^2.
        candidates: all that the budget pays for, in balanced's order.
        chosen: one of the finalists.
        decided_by: energy (it keeps more than every other), order (its bounds overlap with others'; it is the first of them), or
            balanced (nothing keeps GAIN more than the balanced shape).
    """

    parameters: int
    total_energy: float
    candidates: tuple[ShapeCandidate, ...]
    chosen: ShapeCandidate
    decided_by: str


def search_budget(rule: RankRule, out_features: int, in_features: int) -> int:
    """The parameters that a module's candidates may spend: what as many terms as the rule allows cost at the balanced shape, and no
    more than rule budget has for all modules."""
    shape = balanced(out_features, in_features)
    most = shape.parameters(rule.most_terms(shape.max_rank))
    return most if rule.parameters is None else min(most, max(rule.parameters, shape.term_parameters))


@torch.no_grad()
def search_shape(weight: Tensor, parameters: int, *, seed: int) -> ShapeSearch:
    """Compare every pair of divisors by the energy that their terms keep for `parameters`, whole terms only.

    A sketch ranks the candidates; the certified solver measures the best ones and the balanced shape. The most energy wins;
    the balanced shape where that is less than GAIN ahead of it, and where bounds overlap the first in balanced's order, which
    begins with the cheaper term.

    Args:
        weight: [out, in], any floating type and device, finite.
        parameters: at least the cost of one balanced term.
        seed: of the sketch's and the solver's random blocks.

    Raises:
        ValueError: the budget pays for no term, or the weight is not finite.
    """
    weight = weight.detach().float()
    refuse_non_finite(weight)
    out_features, in_features = weight.shape
    shapes = affordable(out_features, in_features, parameters)
    if not shapes:
        raise ValueError(f"{parameters} parameters pay for no term of a weight of {out_features} x {in_features}")
    scale = float(weight.abs().max()) or 1.0  # keeps the sketch's fp32 squares of very large and very small weights finite
    unit = weight / scale
    sketched = [ShapeCandidate(shape, terms, scale**2 * sketch_energy(rearrange(unit, shape), terms, seed=seed)) for shape, terms in shapes]
    del unit
    ranked = sorted(range(len(sketched)), key=lambda index: -sketched[index].sketch_energy)  # stable: equal ones keep the order
    finalists = {0, *[index for index in ranked if index != 0][: FINALISTS - 1]}  # the balanced shape is the order's first
    candidates = []
    total_energy = 0.0
    for index, one in enumerate(sketched):
        if index in finalists:
            one, total_energy = _certified(weight, one, seed)
        candidates.append(one)
    chosen, decided_by = _best([one for one in candidates if one.energy is not None])
    return ShapeSearch(parameters, total_energy, tuple(candidates), chosen, decided_by)


def sketch_energy(matrix: Tensor, count: int, *, seed: int) -> float:
    """Energy of the `count` leading singular values, from below: block Krylov of a few steps, or the Gram matrix where that is cheaper.

    Args:
        matrix: [a, b] fp32.
        count: 1 to min(a, b).
        seed: of the random block, drawn on the CPU.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    side, columns = matrix.shape[0], count + SKETCH_COLUMNS
    if SKETCH_BLOCKS * columns >= side:
        return _leading_sum(matrix @ matrix.T, count)
    generator = torch.Generator().manual_seed(seed)
    block = matrix @ torch.randn(matrix.shape[1], columns, generator=generator).to(matrix)
    basis, image = matrix.new_empty(side, 0), matrix.new_empty(matrix.shape[1], 0)
    for _ in range(SKETCH_BLOCKS):
        for _ in range(2):  # once leaves the basis's rounding behind
            block, _ = torch.linalg.qr(block - basis @ (basis.T @ block))
        basis = torch.cat([basis, block], 1)
        image = torch.cat([image, matrix.T @ block], 1)
        block = matrix @ image[:, -columns:]
        block = block / block.norm(dim=0).clamp(min=torch.finfo(block.dtype).tiny)
    return _leading_sum(image.T @ image, count)


def _leading_sum(gram: Tensor, count: int) -> float:
    return float(torch.linalg.eigvalsh(gram.double())[-count:].clamp(min=0.0).sum())


def _certified(weight: Tensor, one: ShapeCandidate, seed: int) -> tuple[ShapeCandidate, float]:
    """The candidate with the certified energy of its terms, and ||W||_F^2."""
    triplets = leading_triplets(rearrange(weight, one.shape), one.terms, seed=seed)
    energy = float(triplets.sigma.square().sum())
    bound = float((triplets.error_bound * (2 * triplets.sigma + triplets.error_bound)).sum())
    return ShapeCandidate(one.shape, one.terms, one.sketch_energy, energy, bound), triplets.total_energy


def _best(finalists: list[ShapeCandidate]) -> tuple[ShapeCandidate, str]:
    """The finalist to take, and why; the first of them is the balanced shape."""

    def least(one: ShapeCandidate) -> float:
        return (one.energy or 0.0) - (one.error_bound or 0.0)

    def most(one: ShapeCandidate) -> float:
        return (one.energy or 0.0) + (one.error_bound or 0.0)

    floor = max(map(least, finalists))
    contenders = [one for one in finalists if most(one) >= floor]
    if floor <= (1 + GAIN) * most(finalists[0]):
        return finalists[0], "balanced"
    return contenders[0], "energy" if len(contenders) == 1 else "order"
