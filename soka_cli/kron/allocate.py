"""One parameter total over all modules: each term goes where its parameters keep the most energy.

Energies of different modules are compared as they are, sigma^2, not as shares of ||W||^2: together the terms are then the nearest
to all weights at once that the total can buy, ||W - K||^2 summed over the modules, and a module whose weight is small, so that
what is left out of it can change little, does not take terms from one whose weight is large.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from soka_cli.kron.factors import KronFactors
from soka_cli.kron.rank import RankRule
from soka_cli.kron.shape import KronShape


@dataclass(frozen=True)
class Bid:
    """What a module offers for parameters: its leading terms, no more than it may take, in this order.

    Args:
        shape: sizes of its factors, which say what a term costs.
        sigma: singular values of the terms, descending.
        error_bound: absolute error of each.
        floor: terms that it keeps before any others are weighed.
    """

    shape: KronShape
    sigma: Sequence[float]
    error_bound: Sequence[float]
    floor: int = 0

    @classmethod
    def of(cls, factors: KronFactors, spectrum: Tensor, error_bound: Tensor, floor: int) -> "Bid":
        """Of a decomposed module: the terms that it has, of a spectrum that may reach further."""
        return cls(factors.shape, spectrum[: factors.rank].tolist(), error_bound[: factors.rank].tolist(), floor)


@dataclass(frozen=True)
class Allotment:
    """A module's number of terms, and what bounds it: budget, max, full-rank, or unresolved."""

    rank: int
    bound_by: str


@dataclass(frozen=True)
class _Term:
    """One term on offer: the range of its energy a parameter, given the error bound; `place` is its module's in the order given."""

    module: str
    number: int
    place: int
    low: float
    high: float
    cost: int


def allocate(bids: Mapping[str, Bid], parameters: int) -> dict[str, Allotment]:
    """Ranks that keep the most energy a parameter and cost no more than `parameters` together.

    The terms are taken in the order of sigma_k^2 / cost; one that no longer fits is passed over, and with it the rest of its
    module. So the cheapest term that is left costs more than what is left of the total. Where all terms cost the same the
    energy kept is the largest possible; else it is less than one term's energy below the fractional optimum, in which the
    first term that does not fit is cut to size.

    Terms whose order the error bounds leave open where the total ends are taken by their number, then in the order of the
    modules, whatever their computed values; their modules are unresolved. The other ranks hold for all true values within
    the bounds.

    Raises:
        ValueError: the floors cost more than the total, or it pays for no term at all; names the least that works.
    """
    ranks = {name: min(bid.floor, len(bid.sigma)) for name, bid in bids.items()}
    remaining = parameters - refuse_too_little([(bid.shape, ranks[name]) for name, bid in bids.items()], parameters)
    offered = [term for place, (name, bid) in enumerate(bids.items()) for term in _terms(name, bid, place)]
    unresolved: set[str] = set()
    while offered := [term for term in offered if term.number > ranks[term.module] and term.cost <= remaining]:
        certain, undecided = _at_the_cut(offered, remaining)
        if not certain and not unresolved:  # all that follows is among those that are possible here
            unresolved = {term.module for term in _possible(offered, remaining)}
        for term in certain or sorted(undecided, key=lambda term: (term.number, term.place)):
            if term.cost <= remaining:
                remaining -= term.cost
                ranks[term.module] += 1
    return {name: Allotment(rank, "unresolved" if name in unresolved else _bound_by(bids[name], rank)) for name, rank in ranks.items()}


def allocate_evenly(shapes: Mapping[str, KronShape], rule: RankRule) -> dict[str, Allotment]:
    """What rule budget gives modules whose terms are all worth the same: as many terms to each as the total pays for.

    That is what can be said before a spectrum is known.

    Raises:
        ValueError: as `allocate`.
    """
    bids = {}
    for name, shape in shapes.items():
        sigma = [(shape.term_parameters / number) ** 0.5 for number in range(1, rule.most_terms(shape.max_rank) + 1)]
        bids[name] = Bid(shape, sigma, [1e-9 * value for value in sigma], rule.floor)
    return allocate(bids, rule.parameters or 0)


def refuse_too_little(floors: Sequence[tuple[KronShape, int]], parameters: int) -> int:
    """What the floors cost, given each module's shape and floor.

    Raises:
        ValueError: the total does not pay for them, or for a single term; names the least that works.
    """
    cost = sum(shape.parameters(floor) for shape, floor in floors)
    least = cost or min((shape.term_parameters for shape, _ in floors), default=0)
    if parameters < least:
        terms = sum(floor for _, floor in floors)
        wanted = f"the floors of {len(floors)} modules, {terms} terms, take" if cost else "the cheapest term takes"
        raise ValueError(f"{wanted} {least:,} parameters and the budget is {parameters:,}; the least that works is {least}")
    return cost


def _terms(name: str, bid: Bid, place: int) -> list[_Term]:
    """A module's terms with the ranges of their energies. True values descend, so a neighbour's limit is a limit too."""
    cost = bid.shape.term_parameters
    high = list(accumulate((value + error for value, error in zip(bid.sigma, bid.error_bound, strict=True)), min))
    low = list(accumulate((max(0.0, value - error) for value, error in zip(bid.sigma[::-1], bid.error_bound[::-1], strict=True)), max))[
        ::-1
    ]
    return [_Term(name, k + 1, place, low[k] ** 2 / cost, high[k] ** 2 / cost, cost) for k in range(len(high))]


def _at_the_cut(offered: Sequence[_Term], remaining: int) -> tuple[list[_Term], list[_Term]]:
    """The terms that are taken whatever the true values are, and those that may be next; there are always some of the one or the other.

    Certain: all terms that may be worth as much, this one among them, fit together. Next: those that are worth more for certain
    leave enough for it.
    """
    by_high = sorted(offered, key=lambda term: term.high)
    highs, costs = [term.high for term in by_high], [0, *accumulate(term.cost for term in by_high)]
    better = _worth_more(offered)
    certain = [term for term in offered if costs[-1] - costs[bisect_left(highs, term.low)] <= remaining]
    return certain, [term for term in offered if better(term) + term.cost <= remaining]


def _possible(offered: Sequence[_Term], remaining: int) -> list[_Term]:
    """The terms that some true values within the bounds would have taken, and maybe more; no others can be.

    A term is not taken where one before it that costs no more did not fit. So all of those before it that cost no more are taken
    (1: and fit together with it); and those of them that come when the first term has failed to fit, together with it, cost less
    than that one, which may be the dearest (2).
    """
    better, dearest = _worth_more(offered), max(term.cost for term in offered)
    late = [term for term in offered if better(term) > remaining]
    found = []
    for cost in {term.cost for term in offered}:
        cheaper, cheaper_late = (_worth_more([term for term in terms if term.cost <= cost]) for terms in (offered, late))
        fitting = [term for term in offered if term.cost == cost and cheaper(term) + cost <= remaining]  # 1
        found += [term for term in fitting if better(term) <= remaining or cheaper_late(term) + cost < dearest]  # 2
    return found


def _worth_more(terms: Sequence[_Term]) -> Callable[[_Term], int]:
    """What the terms that are worth more than a given one for certain cost together."""
    by_low = sorted(terms, key=lambda term: term.low)
    lows, costs = [term.low for term in by_low], [0, *accumulate(term.cost for term in by_low)]
    return lambda term: costs[-1] - costs[bisect_right(lows, term.high)]


def _bound_by(bid: Bid, rank: int) -> str:
    if rank < len(bid.sigma):
        return "budget"
    return "full-rank" if rank == bid.shape.max_rank else "max"
