"""How many parameters an adapter has on a base model: module by module, and for ranks and shapes not known yet, as a range."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronShape, RankRule, affordable, choose_shape, most_terms, search_budget
from soka_cli.recipe.schema import AdapterSection
from soka_cli.stages.dimensions import LinearModule


@dataclass(frozen=True)
class Terms:
    """What one module may get: `rank` terms of a shape; None where the method knows no shapes."""

    module: LinearModule
    shape: KronShape | None
    rank: int

    @property
    def parameters(self) -> int:
        return self.shape.parameters(self.rank) if self.shape else lora_parameters(self.module, self.rank)


@dataclass(frozen=True)
class PlannedModule:
    """One module that the adapter is put on, with all that it may get, by number of parameters.

    There is one choice where shape and rank are settled, two (fewest and most terms) where a rule reads the spectrum, and as
    many for each shape where the shape is searched.
    """

    module: LinearModule
    choices: tuple[Terms, ...]

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
        """Parameters of one term (SoKA), or of one rank (LoRA); None where the search decides."""
        return Terms(self.module, self.shape, 1).parameters if self.searched == 1 else None

    @property
    def least(self) -> int:
        return min(one.rank for one in self.choices)

    @property
    def most(self) -> int:
        return max(one.rank for one in self.choices)


def lora_parameters(module: LinearModule, rank: int) -> int:
    """What LoRA trains at this rank: r (out + in)."""
    return rank * (module.out_features + module.in_features)


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
        SokaError: exit 2 where a shape does not divide a weight, naming the module and the nearest sizes that do.
    """
    if section.method == "full":
        return []
    if section.method != "soka":
        return [PlannedModule(module, (Terms(module, None, section.rank.value or 1),)) for module in targets]
    return [PlannedModule(module, choices(section, module)) for module in targets]


def choices(section: AdapterSection, module: LinearModule) -> tuple[Terms, ...]:
    """All that the module may get, by number of parameters.

    A rule that reads the spectrum may keep 1 to max terms; no shape has room for more than its max_rank.

    A search takes any of the shapes that its budget pays for, with at most as many terms as it pays for.
    """
    rule = RankRule.from_mapping(section.rank.model_dump(exclude_none=True))
    shape = shape_of(section, module)
    if shape is not None:
        found = [Terms(module, shape, most_terms(rule, shape.max_rank))]
    else:
        size = module.out_features, module.in_features
        found = [Terms(module, one, terms) for one, terms in affordable(*size, search_budget(rule, *size))]
    if rule.rule != "fixed":
        found = list(dict.fromkeys([*(Terms(module, one.shape, 1) for one in found), *found]))
    return tuple(sorted(found, key=lambda one: one.parameters))


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


def adapter_sizes(section: AdapterSection, modules: Sequence[PlannedModule], *, most: bool) -> AdapterSizes:
    """The adapter's counts with every module at its largest (`most`), or at its smallest."""
    terms = tuple(one.choices[-1 if most else 0] for one in modules)
    trained = sum(one.parameters for one in terms)
    return AdapterSizes(
        trained=trained,
        kept=trained if section.method in ("soka", "pissa") else 0,
        components=sum(one.most if most else one.least for one in modules),
        terms=terms,
    )
