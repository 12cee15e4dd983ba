"""How many parameters an adapter has on a base model: module by module, and for ranks and shapes not known yet, as a range."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronShape, RankRule, affordable, balanced, choose_shape, search_budget
from soka_cli.recipe.schema import AdapterSection
from soka_cli.stages.allocation import spread_evenly
from soka_cli.stages.baselines import baseline_parameters, lora_parameters
from soka_cli.stages.dimensions import LinearModule


@dataclass(frozen=True)
class Terms:
    """What one module may get: `rank` terms of a shape, or what another method trains there (`counted`) at this rank."""

    module: LinearModule
    shape: KronShape | None
    rank: int
    counted: int | None = None

    @property
    def room(self) -> int:
        """Terms that the shape has room for."""
        return self.shape.max_rank if self.shape else self.rank

    @property
    def parameters(self) -> int:
        if self.counted is not None:
            return self.counted
        return self.shape.parameters(self.rank) if self.shape else lora_parameters(self.module, self.rank)

    @property
    def tensors(self) -> tuple[int, ...]:
        """Values of each tensor that is trained: U, V and sigma (SoKA), A and B (LoRA); those of a counted method are taken for one."""
        if self.counted is not None:
            return (self.counted,)
        if self.shape is None:
            return self.rank * self.module.in_features, self.rank * self.module.out_features
        return self.rank * self.shape.m * self.shape.n, self.rank * self.shape.p * self.shape.q, self.rank


@dataclass(frozen=True)
class PlannedModule:
    """One module that the adapter is put on, with all that it may get, by number of parameters.

    There is one choice where shape and rank are settled, two (fewest and most terms) where a rule reads the spectrum, and as
    many for each shape where the shape is searched. `even` is what it has where a budget is spread evenly, None under other rules.
    """

    module: LinearModule
    choices: tuple[Terms, ...]
    even: Terms | None = None

    @property
    def shape(self) -> KronShape | None:
        """The factors' sizes; None where the method knows none, or the search decides."""
        return self.choices[0].shape if self.searched == 1 else None

    @property
    def searched(self) -> int:
        """How many shapes are compared."""
        return len({one.shape for one in self.choices})

    @property
    def term_parameters(self) -> int | None:
        """Parameters of one term (SoKA), or of one rank (LoRA, PiSSA); None where the search decides, or a rank has no one price."""
        if self.searched != 1 or self.choices[0].counted is not None:
            return None
        return Terms(self.module, self.shape, 1).parameters

    @property
    def term_costs(self) -> list[int]:
        """Parameters of one term of every shape that it may get."""
        return sorted({Terms(one.module, one.shape, 1).parameters for one in self.choices})

    @property
    def least(self) -> int:
        return min(one.rank for one in self.choices)

    @property
    def most(self) -> int:
        return max(one.rank for one in self.choices)

    def rank(self, *, most: bool) -> int:
        """The largest rank, or the smallest; of a budget, that of the even spread."""
        return self.even.rank if self.even else self.most if most else self.least


@dataclass(frozen=True)
class AdapterSizes:
    """Counts of one choice of ranks.

    Attributes:
        trained: trained parameters.
        kept: values kept beside them: theta0 (SoKA), the start (PiSSA).
        components: terms (SoKA) or ranks (LoRA) in all.
        terms: what each adapted module gets.
    """

    trained: int
    kept: int
    components: int
    terms: tuple[Terms, ...]


def planned_modules(section: AdapterSection, targets: Sequence[LinearModule]) -> list[PlannedModule]:
    """What every target may get. Empty for method full, which has no adapter.

    Raises:
        SokaError: exit 2 where a shape does not divide a weight, naming the module and the nearest sizes that do, or where a
            budget is too small, naming the least that works.
    """
    if section.method == "full":
        return []
    if section.method in ("lora", "pissa"):
        return [PlannedModule(module, (Terms(module, None, section.rank.value or 1),)) for module in targets]
    if section.method != "soka":
        rank = section.rank.value or 1
        return counted_modules({module: baseline_parameters(section, module, rank) for module in targets}, rank)
    if section.rank.rule == "budget":
        return budgeted(section, targets)
    return [PlannedModule(module, choices(section, module)) for module in targets]


def counted_modules(counts: Mapping[LinearModule, int], rank: int) -> list[PlannedModule]:
    """Modules of a method that is neither SoKA nor LoRA, with what it trains on each."""
    return [PlannedModule(module, (Terms(module, None, rank, counted),)) for module, counted in counts.items()]


def choices(section: AdapterSection, module: LinearModule) -> tuple[Terms, ...]:
    """All that the module may get, by number of parameters.

    A rule that reads the spectrum may keep 1 to max terms; no shape has room for more than its max_rank.

    A search takes any of the shapes that its budget pays for, with at most as many terms as it pays for.
    """
    rule = RankRule.from_mapping(section.rank.model_dump(exclude_none=True))
    shape = shape_of(section, module)
    if shape is not None:
        found = [Terms(module, shape, rule.most_terms(shape.max_rank))]
    else:
        size = module.out_features, module.in_features
        found = [Terms(module, one, terms) for one, terms in affordable(*size, search_budget(rule, *size))]
    if rule.rule != "fixed":
        found = list(dict.fromkeys([*(Terms(module, one.shape, 1) for one in found), *found]))
    return tuple(sorted(found, key=lambda one: one.parameters))


def budgeted(section: AdapterSection, targets: Sequence[LinearModule]) -> list[PlannedModule]:
    """A budget may keep from `floor` terms in a module to `max`, and to what is left when the others have their floors.

    Where the shape is searched, the balanced one stands for it in the even spread: none may spend more than that may.
    """
    rule = RankRule.from_mapping(section.rank.model_dump(exclude_none=True))
    given = {module.name: shape_of(section, module) for module in targets}
    shapes = {one.name: given[one.name] or balanced(one.out_features, one.in_features) for one in targets}
    even = spread_evenly(rule, shapes)
    floors = {name: min(rule.floor, shape.max_rank) for name, shape in shapes.items()}
    spare = (rule.parameters or 0) - sum(shape.parameters(floors[name]) for name, shape in shapes.items())
    found = []
    for module in targets:
        shape, least = shapes[module.name], floors[module.name]
        most = min(rule.most_terms(shape.max_rank), least + spare // shape.term_parameters)
        ranged = tuple(Terms(module, shape, rank) for rank in dict.fromkeys((least, most)))
        options = ranged if given[module.name] else choices(section, module)
        found.append(PlannedModule(module, options, Terms(module, shape, even[module.name].rank)))
    return found


def shape_of(section: AdapterSection, module: LinearModule) -> KronShape | None:
    """The module's factor sizes: `shape_pattern` by full name, then by the first pattern that its end matches, then `shape`.

    None where they are to be searched.
    """
    choice = plain(pattern_choice(section.shape_pattern, module.name) or section.shape)
    try:
        return choose_shape(choice, module.out_features, module.in_features)
    except ValueError as error:
        raise SokaError(
            f"the shape does not fit {module.name}",
            where="adapter.shape",
            why=str(error),
            hint="take sizes that divide, or adapter.shape=balanced; adapter.shape_pattern names single modules",
            exit_code=ExitCode.USAGE,
        ) from None


def pattern_choice(patterns: Mapping[str, Any], name: str) -> Any:
    if name in patterns:
        return patterns[name]
    return next((choice for key, choice in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), None)


def plain(choice: Any) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()


def kept_beside(method: str, trained: int) -> int:
    """Values that are saved beside `trained` parameters: SoKA's theta0, PiSSA's start."""
    return trained if method in ("soka", "pissa") else 0


def adapter_sizes(section: AdapterSection, modules: Sequence[PlannedModule], *, most: bool) -> AdapterSizes:
    """The adapter's counts with every module at its largest (`most`), or at its smallest; of a budget, spread evenly, which keeps the
    most activations."""
    terms = tuple(one.even or one.choices[-1 if most else 0] for one in modules)
    trained = sum(one.parameters for one in terms)
    return AdapterSizes(
        trained=trained,
        kept=kept_beside(section.method, trained),
        components=sum(one.rank(most=most) for one in modules),
        terms=terms,
    )


@dataclass(frozen=True)
class Totals:
    """The least and the most of each count over all modules."""

    components: tuple[int, int]
    parameters: tuple[int, int]
    lora_parameters: tuple[int, int]  # LoRA at the same ranks


def adapter_totals(section: AdapterSection, modules: Sequence[PlannedModule]) -> Totals:
    """Every module at its least and at its most; of a budget, what it comes to whatever the spectra are."""
    least, most = (adapter_sizes(section, modules, most=most) for most in (False, True))
    if section.method == "soka" and section.rank.rule == "budget" and (unspent := budget_left(section, modules)) is not None:
        budget = section.rank.parameters or 0
        costs = sorted(cost for one in modules for cost in one.term_costs)
        ratios = sorted(Fraction(lora_parameters(one.module, 1), cost) for one in modules for cost in one.term_costs)
        spent = (budget - unspent, budget) if costs[0] < costs[-1] else (least.trained, most.trained)
        components = (-(-spent[0] // costs[-1]), spent[1] // costs[0])
        return Totals(components, spent, (ceil(spent[0] * ratios[0]), floor(spent[1] * ratios[-1])))
    fewest, largest = (sum(lora_parameters(one.module, one.rank(most=most)) for one in modules) for most in (False, True))
    return Totals((least.components, most.components), (least.trained, most.trained), (fewest, largest))


def budget_left(section: AdapterSection, modules: Sequence[PlannedModule]) -> int | None:
    """The most parameters of a budget that can stay unspent while `max` leaves room for more; None where it leaves none.

    It is less than the cheapest term that is left. Where the modules whose terms cost up to c would take more than the total, one of
    their terms is left, so less than c stays unspent.
    """
    budget, costs = section.rank.parameters or 0, [cost for one in modules for cost in one.term_costs]
    if any(one.searched > 1 for one in modules):
        return max(costs) - 1 if sum(one.choices[-1].parameters for one in modules) > budget else None
    room = [(cost, one.least, min(section.rank.max, one.choices[-1].room)) for one in modules for cost in one.term_costs]
    for cost in sorted(set(costs)):
        if sum(each * (most if each <= cost else least) for each, least, most in room) > budget:
            return cost - 1
    return None
