"""`match_parameters`: the rank at which a baseline trains about as many parameters as something else."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import AdapterSection, RankSection
from soka_cli.stages.baselines import baseline_parameters, by_formula, laid_out
from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import dimensions
from soka_cli.stages.sizes import adapter_totals, planned_modules

MOST = 1 << 16  # no weight is that wide


@dataclass(frozen=True)
class Match:
    """The rank that was chosen: `wanted` parameters, as many as `model` says; `parameters` are those that the rank gives."""

    method: str
    matched: str
    wanted: int
    rank: int
    parameters: int

    @property
    def sentence(self) -> str:
        wanted = f"{self.wanted:,}" if self.matched == f"{self.wanted}" else f"{self.matched}'s {self.wanted:,}"
        share = self.parameters / self.wanted - 1
        return f"match_parameters: {self.method} at rank {self.rank} trains {self.parameters:,} parameters for {wanted} ({share:+.1%})"


def settled(context: StageContext) -> tuple[StageContext, Match | None]:
    """The context with the rank that its recipe leaves to `match_parameters`, and how that was found; as it is where it leaves none.

    Raises:
        SokaError: exit 2, the method has no rank to choose.
    """
    section = context.recipe.adapter
    if section.match_parameters is None:
        return context, None
    wanted = wanted_parameters(context)
    count = counter(context)
    rank = nearest_rank(count, wanted, exhaustive=section.method == "lokr")
    match = Match(section.method, str(section.match_parameters), wanted, rank, count(rank) or 0)
    recipe = context.recipe.model_copy(update={"adapter": with_rank(section, rank)})
    return replace(context, loaded=replace(context.loaded, recipe=recipe)), match


def with_rank(section: AdapterSection, rank: int) -> AdapterSection:
    """The section as if it had named this rank."""
    if section.method == "peft":
        return section.model_copy(update={"config": {**section.config, "r": rank}, "match_parameters": None})
    return section.model_copy(update={"rank": RankSection(rule="fixed", value=rank), "match_parameters": None})


def wanted_parameters(context: StageContext) -> int:
    """The count itself, or what the method of that name would train on the same modules with the recipe's rank and shapes."""
    section = context.recipe.adapter
    if isinstance(section.match_parameters, int):
        return section.match_parameters
    other = section.model_copy(update={"method": section.match_parameters, "match_parameters": None, "config": {}})
    base = dimensions(context.recipe.model, section.target_modules, offline=context.offline)
    return adapter_totals(other, planned_modules(other, base.targets)).parameters[1]


def counter(context: StageContext) -> Callable[[int], int | None]:
    """Rank -> parameters of the recipe's method; None for a rank that it does not take."""
    section, model = context.recipe.adapter, context.recipe.model
    if by_formula(section):
        targets = dimensions(model, section.target_modules, offline=context.offline).targets
        return lambda rank: sum(baseline_parameters(section, module, rank) for module in targets)
    _require_r(section)
    from soka_cli.models.snapshot import snapshot

    folder = snapshot(model.name, revision=model.revision, offline=context.offline, weights=False)

    @cache
    def count(rank: int) -> int | None:
        try:
            return sum(laid_out(with_rank(section, rank), folder, trust=model.trust_remote_code).values())
        except SokaError:
            if rank == 1:
                raise
            return None

    return count


def _require_r(section: AdapterSection) -> None:
    from soka_cli.adapter.methods import peft_config

    if section.method == "peft" and "r" not in {one.name for one in fields(peft_config(section, seed=0))}:
        raise SokaError(
            f"PEFT's method {section.config['peft_type']} has no rank r that could be chosen",
            where="adapter.match_parameters",
            hint="drop it, and set the method's own fields under adapter.config",
            exit_code=ExitCode.USAGE,
        )


def nearest_rank(count: Callable[[int], int | None], wanted: int, *, exhaustive: bool = False) -> int:
    """The rank whose count is nearest to `wanted`, the smaller of two that are as near.

    Args:
        count: rank -> parameters, which grow with it; None beyond the ranks that there are.
        exhaustive: they may fall, or stop growing, where a factor is held whole: look at all ranks up to 64 beyond that.
    """
    if exhaustive:
        top = _first(lambda rank: count(rank) == count(2 * rank))
        ranks = range(1, 2 * top + 1)
    else:
        top = _first(lambda rank: (found := count(rank)) is None or found >= wanted)
        low, high = top // 2, top  # bisect between a rank that is too small and one that is not
        while high - low > 1:
            middle = (low + high) // 2
            reached = (found := count(middle)) is None or found >= wanted
            low, high = (low, middle) if reached else (middle, high)
        ranks = range(max(low, 1), high + 1)
    reachable = [(abs(found - wanted), rank) for rank in ranks if (found := count(rank)) is not None]
    return min(reachable)[1]


def _first(holds: Callable[[int], bool]) -> int:
    """The first power of two for which it holds."""
    rank = 1
    while rank < MOST and not holds(rank):
        rank *= 2
    return rank
