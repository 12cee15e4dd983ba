"""Rules from spectrum to rank against their definitions, written out a second time for values that are known exactly."""

import random
from itertools import pairwise

import pytest
import torch

from soka_cli.kron import KronShape, RankRule, choose_rank

SIZES = [1, 2, 3, 5, 9, 17, 24]
BEYOND = 10**9


def energy_rank(sigma: list[float], total: float, tau: float) -> int:
    kept = 0.0
    for number, value in enumerate(sigma, start=1):
        kept += value * value
        if kept >= tau * total * (1 - 1e-12):
            return number
    return BEYOND


def gap_rank(sigma: list[float]) -> int:
    gaps = [above - below for above, below in pairwise(sigma)]
    return 1 + gaps.index(max(gaps)) if gaps else 1


def relative_gap_rank(sigma: list[float]) -> int:
    gaps = [(above - below) / above if above else 0.0 for above, below in pairwise(sigma)]
    return 1 + gaps.index(max(gaps)) if gaps else 1


def chord_rank(sigma: list[float]) -> int:
    last = len(sigma) - 1
    below = [sigma[0] + (sigma[-1] - sigma[0]) * place / last - value for place, value in enumerate(sigma)] if last > 1 else []
    if not below:
        return 1
    farthest = max(range(1, last), key=lambda place: abs(below[place]))
    return farthest if below[farthest] >= 0 else farthest + 1


def defined_rank(sigma: list[float], total: float, rule: RankRule, full_rank: int) -> int:
    """What the rule's definition gives for the values that it reads."""
    end = full_rank + 1 if rule.spectrum == "full" else rule.max + 1
    window = sigma[:end]
    ended = [*window, 0.0] if len(window) == full_rank < end else window
    elbow = {"gap": gap_rank(ended), "relative-gap": relative_gap_rank(window), "chord": chord_rank(ended)}[rule.elbow]
    wanted = {"energy": [energy_rank(sigma, total, rule.tau)], "elbow": [elbow]}
    wanted["min"] = wanted["energy"] + wanted["elbow"]
    return max(1, min(*wanted[rule.rule], rule.max, full_rank))


def random_rule(draw: random.Random, rule: str, elbow: str) -> RankRule:
    tau = 0.9 if rule == "elbow" else draw.choice([0.3, 0.7, 0.9, 0.99])
    return RankRule(rule, tau=tau, elbow=elbow, max=draw.choice([2, 4, 8, 16]), spectrum=draw.choice(["leading", "full"]))


def random_values(draw: random.Random, size: int) -> list[float]:
    """With equal values, near ones and zeros among them; the first is not zero."""
    some = [draw.choice([draw.uniform(0.0, 3.0), 1.0, draw.uniform(0.95, 1.05), 0.0]) for _ in range(size - 1)]
    return sorted([*some, draw.uniform(0.5, 3.0)], reverse=True)


RULES = [("energy", "gap"), *((rule, elbow) for rule in ("elbow", "min") for elbow in ("gap", "relative-gap", "chord"))]


@pytest.mark.parametrize(("name", "elbow"), RULES)
def test_a_resolved_rank_is_that_of_the_definition_for_the_true_values(name: str, elbow: str) -> None:
    """Computed values lie within the bounds of true ones that the rule is not shown; where it is in doubt, it takes no more."""
    draw, resolved, unresolved = random.Random(0), 0, 0
    for _ in range(300):
        size, rule = draw.choice(SIZES), random_rule(draw, name, elbow)
        true, bound = random_values(draw, size), draw.choice([1e-9, 1e-2, 1e-1])
        computed = torch.tensor([max(0.0, value + bound * draw.uniform(-1, 1)) for value in true], dtype=torch.float64)
        computed, _order = computed.sort(descending=True)
        count, total = rule.wanted_sigmas(size), sum(value * value for value in true)
        bounds = torch.full((count,), bound + 1e-12, dtype=torch.float64)
        shape = KronShape(size, 1, size, 1)
        choice = choose_rank(computed[:count], bounds, total, rule, shape)
        right = defined_rank(true[:count], total, rule, size)
        assert choice.rank == right or (choice.bound_by == "unresolved" and choice.rank < right)
        assert rule.is_settled(computed[:count], bounds, total, shape) == (choice.bound_by != "unresolved")
        resolved += choice.bound_by != "unresolved"
        unresolved += choice.bound_by == "unresolved"
    assert resolved > 100
    assert unresolved > 10


@pytest.mark.parametrize("seed", range(3))
def test_computed_values_that_differ_within_the_bounds_never_give_two_settled_ranks(seed: int) -> None:
    """Two runs of a solver with other random blocks: where both are sure, they agree."""
    draw, both = random.Random(seed), 0
    for _ in range(300):
        rule = random_rule(draw, *draw.choice(RULES))
        size, bound = 24, draw.choice([1e-3, 1e-2])
        true, count = random_values(draw, size), rule.wanted_sigmas(size)
        total = sum(value * value for value in true)
        choices = []
        for _run in range(2):
            computed = torch.tensor([max(0.0, value + bound * draw.choice([-1, 1])) for value in true], dtype=torch.float64)
            bounds = torch.full((count,), bound + 1e-12, dtype=torch.float64)
            values = computed.sort(descending=True).values[:count]
            choices.append(choose_rank(values, bounds, total, rule, KronShape(size, 1, size, 1)))
        if all(choice.bound_by != "unresolved" for choice in choices):
            both += 1
            assert choices[0].rank == choices[1].rank
    assert both > 100


@pytest.mark.parametrize("spikes", [1, 8, 16])
@pytest.mark.parametrize(("shape", "noise"), [(KronShape(15, 10, 20, 25), None), (KronShape(20, 25, 15, 10), 0.02)], ids=str)
def test_as_many_spikes_as_were_put_in_stand_out_of_noise(spikes: int, shape: KronShape, noise: float | None) -> None:
    """On the matrix R(W) itself, 150 x 500 and 500 x 150, singular values by LAPACK."""
    generator = torch.Generator().manual_seed(spikes)
    rows, columns = shape.m * shape.n, shape.p * shape.q
    left, right = (torch.linalg.qr(torch.randn(side, spikes, generator=generator, dtype=torch.float64)).Q for side in (rows, columns))
    level = 0.02
    strength = 3.0 * level * max(rows, columns) ** 0.5  # the threshold is 1.81 in this unit
    matrix = strength * left @ right.T + level * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    sigma = torch.linalg.svdvals(matrix)
    rule = RankRule("gavish-donoho", noise=noise, max=32)
    choice = choose_rank(sigma, torch.full_like(sigma, 1e-9), float(sigma.square().sum()), rule, shape)
    assert (choice.rank, choice.bound_by) == (spikes, "gavish-donoho")
