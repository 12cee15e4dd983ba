"""One parameter total over all modules: each term goes where its parameters keep the most energy.

Energies of different modules are compared as they are, sigma^2, not as shares of ||W||^2: together the terms are then the nearest
to all weights at once that the total can buy, ||W - K||^2 summed over the modules, and a module whose weight is small, so that
what is left out of it can change little, does not take terms from one whose weight is large.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

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
        unresolved |= {term.module for term in undecided + _that_may_follow(offered, certain, undecided, remaining)}
        for term in certain + sorted(undecided, key=lambda term: (term.number, term.place)):
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
    """The terms that are taken whatever the true values are, and those of which the bounds leave it open.

    Certain: all terms that may be worth as much, this one among them, fit together. Neither: those that are worth more for
    certain leave too little for it.
    """
    by_high, by_low = sorted(offered, key=lambda term: term.high), sorted(offered, key=lambda term: term.low)
    highs, lows = [term.high for term in by_high], [term.low for term in by_low]
    cost_by_high, cost_by_low = ([0, *accumulate(term.cost for term in terms)] for terms in (by_high, by_low))
    certain, undecided = [], []
    for term in offered:
        rivals = cost_by_high[-1] - cost_by_high[bisect_left(highs, term.low)]
        better = cost_by_low[-1] - cost_by_low[bisect_right(lows, term.high)]
        if rivals <= remaining:
            certain.append(term)
        elif better + term.cost <= remaining:
            undecided.append(term)
    return certain, undecided


def _that_may_follow(offered: Sequence[_Term], certain: Sequence[_Term], undecided: Sequence[_Term], remaining: int) -> list[_Term]:
    """Terms that fit into what is left only after some choices among undecided ones of different costs."""
    costs = [term.cost for term in undecided]
    if len(set(costs)) < 2:
        return []
    before = remaining - sum(term.cost for term in certain)
    left = before - sum(costs) if sum(costs) <= before else min(before - min(costs), max(costs) - 1)  # at most
    decided = {*certain, *undecided}
    return [term for terms in _at_the_cut([term for term in offered if term not in decided and term.cost <= left], left) for term in terms]


def _bound_by(bid: Bid, rank: int) -> str:
    if rank < len(bid.sigma):
        return "budget"
    return "full-rank" if rank == bid.shape.max_rank else "max"
