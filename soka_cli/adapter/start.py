"""The terms that a module's adapter starts from: shape, decomposition, and what `init` makes of it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from soka_cli.adapter.config import SokaConfig
from soka_cli.kron import (
    Decomposition,
    KronFactors,
    KronShape,
    RankRule,
    ShapeSearch,
    decompose_weight,
    leading_triplets,
    module_seed,
    random_factors,
    rearrange,
    scaled_to,
    search_budget,
    search_shape,
)
from soka_cli.recipe.schema import DATA_INITS

SEARCH_SEED = 0  # not the recipe's: runs that differ in their seed alone have the same shapes


@dataclass(frozen=True)
class Start:
    """theta0 of one module.

    Args:
        factors: the terms, fp32.
        found: the decomposition that gave rank and spectrum, of the weight or of the matrix given in its place.
        weight_energy: ||W||_F^2.
        search: what was compared, None where the shape was given.
        own_sigma: the weight's own leading singular values, whose norm terms of another matrix are scaled to; else None.
    """

    factors: KronFactors
    found: Decomposition
    weight_energy: float
    search: ShapeSearch | None
    own_sigma: Tensor | None = None


def make_start(weight: Tensor, config: SokaConfig, module_name: str, *, matrix: Tensor | None = None) -> Start:
    """Choose shape and rank for a module and make its terms.

    weight: the decomposition's own terms. random: terms drawn at random with its sizes and sigmas. gradient and early-update:
    the terms of `matrix`, scaled by one number so that ||K|| is that of as many leading terms of the weight: one learning rate
    then moves the function about as far from either start.

    Args:
        weight: [out, in], any floating type and device.
        config: shape, rank, init, seed and the patterns.
        module_name: its full name, which also seeds it.
        matrix: [out, in], what is decomposed in place of the weight; for gradient and early-update.

    Raises:
        ValueError: sizes that do not divide, values that are not finite, or an init from data without its matrix.
    """
    if config.init in DATA_INITS and matrix is None:
        raise ValueError(
            f"init {config.init} starts from data, which this model has not seen; `soka decompose` makes the terms, and "
            "soka_cli.adapter.attach_factors(model, config, 'RUN/decompose/factors.safetensors') puts them on"
        )
    seed = module_seed(config.seed, module_name)
    shape, rule, search = _shaped(weight if matrix is None else matrix, config, module_name)
    if matrix is not None:
        found = decompose_weight(matrix, shape, rule, seed=seed)
        own = leading_triplets(rearrange(weight.detach().to(torch.float32), shape), found.factors.rank, seed=seed)
        return Start(scaled_to(found.factors, float(own.sigma.norm())), found, own.total_energy, search, own.sigma)
    held = [weight]
    del weight  # so that the solver can free it once it is rearranged
    found = decompose_weight(held.pop(), shape, rule, seed=seed)
    factors = random_factors(found.factors, seed=seed) if config.init == "random" else found.factors
    return Start(factors, found, found.total_energy, search)


def _shaped(source: Tensor, config: SokaConfig, module_name: str) -> tuple[KronShape, RankRule, ShapeSearch | None]:
    """The module's shape, and its rule: a searched shape keeps no more terms than the search's budget pays for."""
    rule = config.rule_of(module_name)
    shape = config.shape_of(module_name, *source.shape)
    if shape is not None:
        return shape, rule, None
    search = search_shape(source, search_budget(rule, *source.shape), seed=module_seed(SEARCH_SEED, module_name))
    return search.chosen.shape, within(rule, search.chosen.terms), search


def within(rule: RankRule, terms: int) -> RankRule:
    """The same rule with at most `terms`."""
    if rule.rule == "fixed" and rule.value is not None:
        return replace(rule, value=min(rule.value, terms))
    most = min(rule.max, terms)
    return replace(rule, max=most, floor=min(rule.floor, most))
