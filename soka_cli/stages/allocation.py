"""Rule budget over decomposed modules: share the total out, cut each module's terms and what is recorded of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import Allotment, Bid, KronShape, RankRule, allocate, allocate_evenly, scaled_to

if TYPE_CHECKING:
    from soka_cli.stages.parts import Part


def spread_evenly(rule: RankRule, shapes: Mapping[str, KronShape]) -> dict[str, Allotment]:
    """What rule budget gives if all terms are worth the same: as much as can be known before a weight is read.

    Raises:
        SokaError: exit 2, the total is too small, with the least that works.
    """
    try:
        return allocate_evenly(shapes, rule)
    except ValueError as error:
        raise _too_small(error) from None


def allocated(rule: RankRule, parts: Sequence["Part"]) -> list["Part"]:
    """The parts with the terms that the rule gives each of them, none perhaps; under any rule but budget they are as they were.

    Args:
        parts: every module of the run, in the model's order, with as many terms as the rule may give it.

    Raises:
        SokaError: exit 2, the total is too small for the shapes that a search has found.
    """
    if rule.parameters is None:
        return list(parts)
    bids = {part.record["name"]: Bid.of(part.factors, part.spectrum, part.error_bound, rule.floor) for part in parts}
    try:
        allotted = allocate(bids, rule.parameters)
    except ValueError as error:
        raise _too_small(error) from None
    return [_cut(part, allotted[part.record["name"]]) for part in parts]


def _too_small(error: ValueError) -> SokaError:
    return SokaError(
        "the parameter budget is too small",
        where="adapter.rank.parameters",
        why=str(error),
        hint="raise adapter.rank.parameters, or lower adapter.rank.floor, or name fewer target_modules",
        exit_code=ExitCode.USAGE,
    )


def _cut(part: "Part", allotment: Allotment) -> "Part":
    rank, factors = allotment.rank, part.factors.leading(allotment.rank)
    if part.own_sigma is not None:
        factors = scaled_to(factors, float(part.own_sigma[:rank].norm()))
    record: dict[str, Any] = part.record | {
        "rank": rank,
        "rank_bound_by": allotment.bound_by,
        "parameters": part.factors.shape.parameters(rank),
        "sigma_error_bound": max(part.error_bound[:rank].tolist(), default=0.0),
    }
    if energy := record["total_energy"]:
        record["energy_kept"] = min(1.0, float(part.spectrum[:rank].square().sum()) / energy)
        # terms are orthogonal: what the dropped ones held is added to what was missing
        dropped = float(part.spectrum[rank : part.factors.rank].square().sum())
        record["relative_error"] = (record["relative_error"] ** 2 + dropped / energy) ** 0.5
    return replace(part, factors=factors, record=record)
