"""How many parameters an adapter has on a base model: module by module, and for ranks not known yet, as a range."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron.rank import RankRule
from soka_cli.kron.shape import KronShape, choose_shape
from soka_cli.recipe.schema import AdapterSection
from soka_cli.stages.allocation import spread_evenly
from soka_cli.stages.dimensions import LinearModule


@dataclass(frozen=True)
class PlannedModule:
    """One module that the adapter is put on; `shape` is None where the method knows none. Ranks are the least and the most;
    `even` is the one that it has where a budget is spread evenly, None under other rules."""

    module: LinearModule
    shape: KronShape | None
    least: int
    most: int
    even: int | None = None

    @property
    def term_parameters(self) -> int:
        """Parameters of one term (SoKA), or of one rank (LoRA)."""
        return self.shape.term_parameters if self.shape else self.lora_parameters(1)

    def lora_parameters(self, rank: int) -> int:
        """What LoRA trains here at this rank: r (out + in)."""
        return rank * (self.module.out_features + self.module.in_features)


@dataclass(frozen=True)
class AdapterSizes:
    """Counts of one choice of ranks.

    Attributes:
        trained: trained parameters.
        kept: values kept beside them: theta0 (SoKA), the start (PiSSA).
        components: terms (SoKA) or ranks (LoRA) in all.
        ranks: each adapted module with its terms or rank.
    """

    trained: int
    kept: int
    components: int
    ranks: tuple[tuple[PlannedModule, int], ...]


def planned_modules(section: AdapterSection, targets: Sequence[LinearModule]) -> list[PlannedModule]:
    """Shape and range of ranks of every target. None for method full, which has no adapter.

    Raises:
        SokaError: exit 2 where a shape does not divide a weight, naming the module and the nearest sizes that do, or where a
            budget is too small, naming the least that works.
    """
    if section.method == "full":
        return []
    if section.method != "soka":
        rank = section.rank.value or 1
        return [PlannedModule(module, None, rank, rank) for module in targets]
    shapes = {module.name: shape_of(section, module) for module in targets}
    if section.rank.rule == "budget":
        return budgeted(section, targets, shapes)
    return [planned(section, module, shapes[module.name]) for module in targets]


def planned(section: AdapterSection, module: LinearModule, shape: KronShape) -> PlannedModule:
    """A rule that reads the spectrum may keep 1 to max terms; no shape has room for more than its max_rank."""
    rank = section.rank
    if rank.rule == "fixed":
        fixed = min(rank.value or 1, shape.max_rank)
        return PlannedModule(module, shape, fixed, fixed)
    return PlannedModule(module, shape, 1, min(rank.max, shape.max_rank))


def budgeted(section: AdapterSection, targets: Sequence[LinearModule], shapes: Mapping[str, KronShape]) -> list[PlannedModule]:
    """A budget may keep from `floor` terms in a module to `max`, and to what is left when the others have their floors."""
    rule = RankRule.from_mapping(section.rank.model_dump(exclude_none=True))
    even = spread_evenly(rule, shapes)
    floors = {name: min(rule.floor, shape.max_rank) for name, shape in shapes.items()}
    spare = (rule.parameters or 0) - sum(shape.parameters(floors[name]) for name, shape in shapes.items())
    found = []
    for module in targets:
        shape, floor = shapes[module.name], floors[module.name]
        most = min(rule.most_terms(shape.max_rank), floor + spare // shape.term_parameters)
        found.append(PlannedModule(module, shape, floor, most, even[module.name].rank))
    return found


def shape_of(section: AdapterSection, module: LinearModule) -> KronShape:
    """The module's factor sizes: `shape_pattern` by full name, then by the first pattern that its end matches, then `shape`."""
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


def adapter_sizes(section: AdapterSection, modules: Sequence[PlannedModule], *, most: bool) -> AdapterSizes:
    """The adapter's counts with every module at its largest rank (`most`), or at its smallest; of a budget, spread evenly, which
    keeps the most activations."""
    ranks = tuple((one, one.even if one.even is not None else one.most if most else one.least) for one in modules)
    trained = sum(one.term_parameters * rank for one, rank in ranks)
    return AdapterSizes(
        trained=trained,
        kept=trained if section.method in ("soka", "pissa") else 0,
        components=sum(rank for _, rank in ranks),
        ranks=ranks,
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
        costs = sorted(one.term_parameters for one in modules)
        rows = sorted(one.lora_parameters(1) for one in modules)
        spent = (budget - unspent, budget) if costs[0] < costs[-1] else (least.trained, most.trained)
        components = (-(-spent[0] // costs[-1]), spent[1] // costs[0])
        return Totals(components, spent, (components[0] * rows[0], components[1] * rows[-1]))
    return Totals(
        (least.components, most.components),
        (least.trained, most.trained),
        (_lora_parameters(least), _lora_parameters(most)),
    )


def budget_left(section: AdapterSection, modules: Sequence[PlannedModule]) -> int | None:
    """The most parameters of a budget that can stay unspent while `max` leaves room for more; None where it leaves none.

    It is less than the cheapest term that is left. Where the modules whose terms cost up to c would take more than the total, one of
    their terms is left, so less than c stays unspent.
    """
    room = [(one.term_parameters, one.least, min(section.rank.max, one.shape.max_rank)) for one in modules if one.shape]
    for cost in sorted({cost for cost, _, _ in room}):
        if sum(each * (most if each <= cost else least) for each, least, most in room) > (section.rank.parameters or 0):
            return cost - 1
    return None


def _lora_parameters(sizes: AdapterSizes) -> int:
    return sum(one.lora_parameters(rank) for one, rank in sizes.ranks)
