"""From a spectrum to a number of terms: one small function per rule.

A rule reads computed singular values that are known up to an error bound, so it answers with a range: the smallest and
the largest rank that the true values allow. Where the range is wider than one number, the smaller is taken and the
choice is marked unresolved; so no choice hangs on rounding or on a random seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

RULES = ("min", "energy", "elbow", "fixed")
ELBOWS = ("gap",)
SPECTRA = ("leading", "full")
ENERGY_ROUNDING = 1e-12  # fp64 sums of squares differ by this share from one order of summing to the other
UNBOUNDED = 2**62  # larger than any rank: the rule asks for more terms than were computed


@dataclass(frozen=True)
class RankRule:
    """A recipe's `rank`: which rule decides, and what it reads.

    `tau` is the share of the energy, `max` the most terms, `value` the terms of rule fixed. The elbow reads the first
    max + 1 singular values, or all of them where `spectrum` is full.
    """

    rule: str = "min"
    tau: float = 0.90
    elbow: str = "gap"
    max: int = 16
    value: int | None = None
    spectrum: str = "leading"

    def __post_init__(self) -> None:
        for name, value, known in (("rule", self.rule, RULES), ("elbow", self.elbow, ELBOWS), ("spectrum", self.spectrum, SPECTRA)):
            if value not in known:
                raise ValueError(f"rank.{name} {value!r} is none of: {', '.join(known)}")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"rank.tau {self.tau} is not in (0, 1]")
        if self.max < 1:
            raise ValueError(f"rank.max {self.max} is below 1")
        if self.rule == "fixed" and (self.value is None or self.value < 1):
            raise ValueError("rank.rule fixed needs a value of at least 1, e.g. {rule: fixed, value: 2}")
        if self.rule != "fixed" and self.value is not None:
            raise ValueError(f"rank.value belongs to rule fixed, and rule is {self.rule}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "RankRule":
        """From a recipe's mapping, e.g. {"rule": "fixed", "value": 4}.

        Raises:
            ValueError: a key or a value that is not known.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(mapping) - set(known)):
            raise ValueError(f"rank has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**mapping)

    def wanted_sigmas(self, full_rank: int) -> int:
        """How many leading singular values the rule and its record read."""
        if self.spectrum == "full":
            return full_rank
        return min(full_rank, max(self.max + 1, self.value or 0))


@dataclass(frozen=True)
class RankChoice:
    """The rank of one module and what decided it.

    `rank_energy` and `rank_elbow` are what these rules say, None where the computed spectrum does not reach.
    `bound_by` is one of energy, elbow, max, fixed, unresolved, full-rank. `energy_kept` is a share of the total energy.
    """

    rank: int
    rank_energy: int | None
    rank_elbow: int | None
    bound_by: str
    energy_kept: float


@dataclass(frozen=True)
class Reading:
    """The ranks between which a rule's answer lies, given the error bounds of the singular values."""

    low: int
    high: int


def choose_rank(sigma: Tensor, error_bound: Tensor, total_energy: float, rule: RankRule, full_rank: int) -> RankChoice:
    """The rank that the rule gives for a spectrum.

    Args:
        sigma: [k] leading singular values, descending.
        error_bound: [k] absolute error of each.
        total_energy: ||W||_F^2, all singular values' squares.
        rule: what decides.
        full_rank: number of singular values that there are, computed or not.
    """
    sigma, error_bound = sigma.double().cpu(), error_bound.double().cpu()
    energy = energy_reading(sigma, error_bound, total_energy, rule.tau)
    elbow = gap_reading(*_elbow_window(sigma, error_bound, rule, full_rank))
    cap = min(rule.max, full_rank)
    readings = {
        "min": {"energy": energy, "elbow": elbow},
        "energy": {"energy": energy},
        "elbow": {"elbow": elbow},
        "fixed": {},
    }[rule.rule]
    if rule.rule == "fixed":
        wanted = rule.value or 1
        cap = min(wanted, full_rank)
        readings["fixed" if wanted <= full_rank else "full-rank"] = Reading(cap, cap)
    else:
        readings["max" if rule.max <= full_rank else "full-rank"] = Reading(cap, cap)
    rank = min(reading.low for reading in readings.values())
    decided = rank == min(reading.high for reading in readings.values())
    bound_by = next(name for name, reading in readings.items() if reading.low == rank) if decided else "unresolved"
    return RankChoice(rank, _known(energy), _known(elbow), bound_by, _share(sigma, rank, total_energy))


def energy_reading(sigma: Tensor, error_bound: Tensor, total_energy: float, tau: float) -> Reading:
    """The smallest r with sum_{k<=r} sigma_k^2 >= tau ||W||_F^2; UNBOUNDED where it lies beyond the computed values."""

    def crossing(values: Tensor) -> int:
        reached = values.square().cumsum(0) >= tau * total_energy * (1 - ENERGY_ROUNDING)
        return int(reached.nonzero()[0]) + 1 if reached.any() else UNBOUNDED

    return Reading(crossing(sigma + error_bound), crossing((sigma - error_bound).clamp(min=0.0)))


def gap_reading(sigma: Tensor, error_bound: Tensor) -> Reading:
    """The paper's elbow: argmax_i (sigma_i - sigma_{i+1}), keep i. On a convex spectrum it is always 1.

    The range holds every i whose gap may be the largest, given the error bounds of its two ends.
    """
    if len(sigma) < 2:
        return Reading(1, 1)
    gap = sigma[:-1] - sigma[1:]
    error = error_bound[:-1] + error_bound[1:]
    candidates = (gap + error >= (gap - error).max()).nonzero()
    return Reading(int(candidates[0]) + 1, int(candidates[-1]) + 1)


def _elbow_window(sigma: Tensor, error_bound: Tensor, rule: RankRule, full_rank: int) -> tuple[Tensor, Tensor]:
    """The values that the elbow reads: the first max + 1, or all; after the last one that there is comes an exact zero."""
    if len(sigma) == full_rank:
        sigma, error_bound = (torch.cat([values, values.new_zeros(1)]) for values in (sigma, error_bound))
    end = len(sigma) if rule.spectrum == "full" else rule.max + 1
    return sigma[:end], error_bound[:end]


def _known(reading: Reading) -> int | None:
    return None if reading.low == UNBOUNDED else reading.low


def _share(sigma: Tensor, rank: int, total_energy: float) -> float:
    """Energy of the first terms as a share of all; a zero weight loses nothing."""
    if total_energy == 0.0:
        return 1.0
    return min(1.0, float(sigma[:rank].square().sum()) / total_energy)
