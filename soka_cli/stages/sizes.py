"""How many parameters an adapter has on a base model: module by module, and for ranks not known yet, as a range."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron.shape import KronShape, choose_shape
from soka_cli.recipe.schema import AdapterSection
from soka_cli.stages.dimensions import LinearModule


@dataclass(frozen=True)
class PlannedModule:
    """One module that the adapter is put on; `shape` is None where the method knows none. Ranks are the least and the most."""

    module: LinearModule
    shape: KronShape | None
    least: int
    most: int

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
        SokaError: exit 2 where a shape does not divide a weight, naming the module and the nearest sizes that do.
    """
    if section.method == "full":
        return []
    if section.method != "soka":
        rank = section.rank.value or 1
        return [PlannedModule(module, None, rank, rank) for module in targets]
    return [planned(section, module, shape_of(section, module)) for module in targets]


def planned(section: AdapterSection, module: LinearModule, shape: KronShape) -> PlannedModule:
    """A rule that reads the spectrum may keep 1 to max terms; no shape has room for more than its max_rank."""
    rank = section.rank
    if rank.rule == "fixed":
        fixed = min(rank.value or 1, shape.max_rank)
        return PlannedModule(module, shape, fixed, fixed)
    return PlannedModule(module, shape, 1, min(rank.max, shape.max_rank))


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
    """The adapter's counts with every module at its largest rank (`most`), or at its smallest."""
    ranks = tuple((one, one.most if most else one.least) for one in modules)
    trained = sum(one.term_parameters * rank for one, rank in ranks)
    return AdapterSizes(
        trained=trained,
        kept=trained if section.method in ("soka", "pissa") else 0,
        components=sum(rank for _, rank in ranks),
        ranks=ranks,
    )
