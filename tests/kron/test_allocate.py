"""One budget over all modules: against every other choice, against the fractional optimum, and under wrong spectra."""

import itertools
import random

import pytest

from soka_cli.kron import Allotment, Bid, KronShape, RankRule, allocate, allocate_evenly, balanced

SQUARE = balanced(4096, 4096)
QUERIES_AND_VALUES = {f"model.layers.{layer}.self_attn.{kind}_proj": SQUARE for layer in range(32) for kind in "qv"}


def shape_of_cost(parameters: int) -> KronShape:
    """A shape whose term has so many parameters."""
    return KronShape(1, parameters - 2, 1, 1)


def bid(sigma: list[float], cost: int, *, bound: float = 0.0, floor: int = 0) -> Bid:
    return Bid(shape_of_cost(cost), sigma, [bound] * len(sigma), floor)


def random_bids(draw: random.Random, costs: list[int], *, bound: float = 0.0, floors: tuple[int, ...] = (0,)) -> dict[str, Bid]:
    def one() -> Bid:
        sigma = sorted((draw.uniform(0.5, 3.0) for _ in range(draw.randint(1, 4))), reverse=True)
        return bid(sigma, draw.choice(costs), bound=bound, floor=draw.choice(floors))

    return {f"module {index}": one() for index in range(draw.randint(1, 5))}


def spent(bids: dict[str, Bid], ranks: dict[str, int]) -> int:
    return sum(bids[name].shape.parameters(rank) for name, rank in ranks.items())


def kept(bids: dict[str, Bid], ranks: dict[str, int]) -> float:
    return sum(sum(value**2 for value in bids[name].sigma[:rank]) for name, rank in ranks.items())


def ranks_of(found: dict[str, Allotment]) -> dict[str, int]:
    return {name: allotment.rank for name, allotment in found.items()}


def fractional_optimum(bids: dict[str, Bid], parameters: int) -> float:
    """The most energy if the last term may be cut to size."""
    ranks = {name: min(one.floor, len(one.sigma)) for name, one in bids.items()}
    energy, left = kept(bids, ranks), parameters - spent(bids, ranks)
    terms = [(value**2, one.shape.term_parameters) for name, one in bids.items() for value in one.sigma[ranks[name] :]]
    for gain, cost in sorted(terms, key=lambda term: term[0] / term[1], reverse=True):
        part = min(1.0, left / cost)
        energy, left = energy + part * gain, left - part * cost
    return energy


def affordable(draw: random.Random, bids: dict[str, Bid]) -> int:
    """A total that pays for the floors and at least one term, and seldom for all."""
    least = sum(one.shape.parameters(min(one.floor, len(one.sigma))) for one in bids.values())
    return draw.randint(max(least, max(one.shape.term_parameters for one in bids.values())), least + 150)


@pytest.mark.parametrize("seed", range(6))
def test_at_equal_costs_no_other_choice_keeps_more_energy(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        bids = random_bids(draw, [10], floors=(0, 0, 1, 2))
        parameters = affordable(draw, bids)
        found = ranks_of(allocate(bids, parameters))
        choices = itertools.product(*(range(min(one.floor, len(one.sigma)), len(one.sigma) + 1) for one in bids.values()))
        every = (dict(zip(bids, ranks, strict=True)) for ranks in choices)
        assert kept(bids, found) == pytest.approx(max(kept(bids, ranks) for ranks in every if spent(bids, ranks) <= parameters))


@pytest.mark.parametrize("seed", range(6))
def test_at_unequal_costs_it_is_within_one_terms_energy_of_the_fractional_optimum(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(100):
        bids = random_bids(draw, [7, 10, 23], floors=(0, 0, 1))
        parameters = affordable(draw, bids)
        found = ranks_of(allocate(bids, parameters))
        best = fractional_optimum(bids, parameters)
        untaken = [value**2 for name, one in bids.items() for value in one.sigma[found[name] : found[name] + 1]]
        assert best - max(untaken, default=0.0) - 1e-9 <= kept(bids, found) <= best + 1e-9


@pytest.mark.parametrize("costs", [[10], [7, 10, 23]])
def test_it_never_spends_more_and_leaves_less_than_the_cheapest_term_that_is_left(costs: list[int]) -> None:
    draw = random.Random(0)
    for _ in range(300):
        bids = random_bids(draw, costs, bound=draw.choice([0.0, 0.05, 1.0]), floors=(0, 1))
        parameters = affordable(draw, bids)
        found = ranks_of(allocate(bids, parameters))
        left = parameters - spent(bids, found)
        assert left >= 0
        assert all(min(one.floor, len(one.sigma)) <= found[name] <= len(one.sigma) for name, one in bids.items())
        assert all(left < one.shape.term_parameters for name, one in bids.items() if found[name] < len(one.sigma))


@pytest.mark.parametrize("costs", [[10], [7, 10, 23]])
def test_a_resolved_rank_is_that_of_every_spectrum_within_the_bounds(costs: list[int]) -> None:
    draw, resolved = random.Random(0), 0
    for _ in range(400):
        bound = draw.choice([0.02, 0.1, 0.3])
        bids = random_bids(draw, costs, bound=bound)
        parameters = affordable(draw, bids)
        found = allocate(bids, parameters)
        true = {}
        for name, one in bids.items():
            moved = [max(0.0, value + bound * draw.choice([-1.0, 1.0, draw.uniform(-1.0, 1.0)])) for value in one.sigma]
            true[name] = Bid(one.shape, sorted(moved, reverse=True), [0.0] * len(moved))
        right = allocate(true, parameters)
        settled = [name for name in found if found[name].bound_by != "unresolved"]
        resolved += len(settled)
        assert [found[name].rank for name in settled] == [right[name].rank for name in settled]
    assert resolved > 400


def taken_in_order(bids: dict[str, Bid], parameters: int, true: dict[str, list[float]]) -> dict[str, int]:
    """The definition, term by term, for values that are known."""
    ranks, left, passed_over = dict.fromkeys(bids, 0), parameters, set()
    terms = [(value**2 / bids[name].shape.term_parameters, -number, name) for name in bids for number, value in enumerate(true[name])]
    for _, _, name in sorted(terms, reverse=True):
        cost = bids[name].shape.term_parameters
        if name in passed_over or cost > left:
            passed_over.add(name)
        else:
            ranks[name], left = ranks[name] + 1, left - cost
    return ranks


@pytest.mark.parametrize("costs", [[10], [7, 10, 23], [8, 13], [3, 20]], ids=str)
def test_a_resolved_rank_is_that_of_every_corner_of_the_bounds(costs: list[int]) -> None:
    draw, settled, unresolved = random.Random(0), 0, 0
    for _ in range(150):
        bound = draw.choice([0.02, 0.1, 0.3])
        bids = {}
        for index in range(draw.randint(2, 6)):
            cost = draw.choice(costs)
            bids[f"module {index}"] = bid([draw.uniform(0.9, 1.5) * cost**0.5], cost, bound=bound)
        sizes = [one.shape.term_parameters for one in bids.values()]
        parameters = draw.randint(max(sizes), max(max(sizes), sum(sizes) - 1))
        found = allocate(bids, parameters)
        for signs in itertools.product([-1, 1], repeat=len(bids)):
            true = {name: [one.sigma[0] + sign * bound] for (name, one), sign in zip(bids.items(), signs, strict=True)}
            right = taken_in_order(bids, parameters, true)
            assert all(found[name].bound_by == "unresolved" or found[name].rank == right[name] for name in bids)
        unresolved += sum(one.bound_by == "unresolved" for one in found.values())
        settled += sum(one.bound_by != "unresolved" for one in found.values())
    assert min(settled, unresolved) > 50


def test_a_dear_term_that_no_longer_fits_does_not_settle_what_the_cheap_ones_share() -> None:
    """Nine are left after the first: the dear term is worth more than one of the cheap ones for certain, and out of the running."""
    bids = {"first": bid([9.0], 20), "dear": bid([4.0], 20), "one": bid([2.15], 7, bound=0.2), "two": bid([2.3], 7, bound=0.2)}
    found = allocate(bids, 29)
    assert {name: one.bound_by for name, one in found.items() if name in ("one", "two")} == {"one": "unresolved", "two": "unresolved"}
    assert (found["first"].rank, found["dear"].rank, found["dear"].bound_by) == (1, 0, "budget")


def test_below_the_cut_only_what_may_still_fit_is_unresolved() -> None:
    """Four equal values compete for three places, and 11 are left whichever wins; less than one of them, 23, is left in any case."""
    rivals = {name: bid([3.0], 23, bound=0.1) for name in "abcd"}
    small = {f"small {number}": bid([0.3 - number / 100], 8, bound=1e-4) for number in range(8)}
    found = allocate(rivals | small, 80)
    assert {found[name].bound_by for name in rivals} == {"unresolved"}
    assert {found[f"small {number}"].bound_by for number in range(2, 8)} == {"budget"}


def test_ties_are_broken_by_the_number_of_the_term_then_by_the_order_of_modules_whatever_was_computed() -> None:
    """Sixteen equal values, computed with errors that differ from seed to seed."""
    outcomes = []
    for seed in range(8):
        draw = random.Random(seed)
        sigma = [sorted((2.0 + draw.uniform(-1e-6, 1e-6) for _ in range(4)), reverse=True) for _ in range(4)]
        bids = {name: bid(values, 10, bound=2e-6) for name, values in zip("dacb", sigma, strict=True)}
        outcomes.append(allocate(bids, 60))
    assert ranks_of(outcomes[0]) == {"d": 2, "a": 2, "c": 1, "b": 1}
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert {allotment.bound_by for allotment in outcomes[0].values()} == {"unresolved"}


def test_the_terms_of_a_module_are_taken_in_their_order() -> None:
    """Its second term is worth more than the other's first, and comes after its own first."""
    found = allocate({"strong": bid([3.0, 2.0, 1.0], 10), "weak": bid([1.5, 0.1], 10)}, 30)
    assert ranks_of(found) == {"strong": 2, "weak": 1}


def test_a_cheaper_term_is_preferred_at_equal_energy() -> None:
    assert ranks_of(allocate({"dear": bid([2.0], 20), "cheap": bid([2.0], 10)}, 25)) == {"dear": 0, "cheap": 1}


def test_a_floor_goes_before_energy_and_a_short_module_takes_no_more_than_it_has() -> None:
    found = allocate({"strong": bid([9.0, 8.0, 7.0], 10, floor=1), "weak": bid([0.1], 10, floor=2), "other": bid([1.0], 10)}, 40)
    assert ranks_of(found) == {"strong": 3, "weak": 1, "other": 0}


def test_what_bounds_a_rank_is_named() -> None:
    """max stops a module at the end of its bid; the shape where it has no room for more; the budget every other one."""
    shape = KronShape(2, 1, 2, 1)  # room for two terms, five parameters each
    bids = {"max": Bid(SQUARE, [9e3] * 2, [0.0] * 2), "full": Bid(shape, [9.0, 8.0], [0.0] * 2), "poor": Bid(shape, [0.1], [0.0])}
    found = allocate(bids, 2 * SQUARE.term_parameters + 10)
    assert {name: (one.rank, one.bound_by) for name, one in found.items()} == {
        "max": (2, "max"),
        "full": (2, "full-rank"),
        "poor": (0, "budget"),
    }


@pytest.mark.parametrize("floor", [0, 1])
def test_a_total_that_pays_for_too_little_is_refused_with_the_least_that_works(floor: int) -> None:
    bids = {"one": bid([2.0, 1.0], 20, floor=floor), "two": bid([2.0, 1.0], 30, floor=floor)}
    least = 50 if floor else 20
    assert sum(ranks_of(allocate(bids, least)).values()) == 1 + floor
    with pytest.raises(ValueError, match=rf"the budget is {least - 1}; the least that works is {least}"):
        allocate(bids, least - 1)


@pytest.mark.parametrize(("parameters", "terms"), [(991_353, 121), (990_000, 120), (524_352, 64), (8193, 1), (100_000_000, 1024)])
def test_on_llama_2_7b_a_total_gives_as_many_terms_whatever_the_spectra(parameters: int, terms: int) -> None:
    even = ranks_of(allocate_evenly(QUERIES_AND_VALUES, RankRule("budget", parameters=parameters)))
    draw = random.Random(0)
    bids = {
        name: Bid(shape, sorted((draw.expovariate(1.0) for _ in range(16)), reverse=True), [1e-9] * 16)
        for name, shape in QUERIES_AND_VALUES.items()
    }
    assert sum(even.values()) == sum(ranks_of(allocate(bids, parameters)).values()) == terms
    assert max(even.values()) - min(even.values()) <= 1


def test_an_even_spread_is_the_papers_57_twos_and_7_ones() -> None:
    ranks = list(ranks_of(allocate_evenly(QUERIES_AND_VALUES, RankRule("budget", parameters=991_353))).values())
    assert (ranks.count(2), ranks.count(1)) == (57, 7)


def test_all_seven_projections_land_less_than_a_term_below_the_total() -> None:
    sizes = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    sizes |= {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}
    draw = random.Random(0)
    bids = {}
    for layer, (kind, size) in itertools.product(range(32), sizes.items()):
        sigma = sorted((draw.uniform(0.0, 3.0) for _ in range(16)), reverse=True)
        bids[f"{layer}.{kind}"] = Bid(balanced(*size), sigma, [1e-6] * 16)
    assert {one.shape.term_parameters for one in bids.values()} == {8193, 13_697}
    for parameters in (990_000, 2_363_616, 5_000_000):
        assert 0 <= parameters - spent(bids, ranks_of(allocate(bids, parameters))) < 8193
