"""From a spectrum to a number of terms: one small function per rule.

A rule reads computed singular values that are known up to an error bound, so it answers with a range: the smallest and
the largest rank that the true values allow. Where the range is wider than one number, the smaller is taken and the
choice is marked unresolved; so no choice hangs on rounding or on a random seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from soka_cli.kron.marchenko_pastur import hard_threshold, median_threshold
from soka_cli.kron.shape import KronShape

COMBINED = ("min", "elbow", "fixed", "budget")  # rules that take the answers of others, or a number
ELBOWS = ("gap", "relative-gap", "chord")
SPECTRA = ("leading", "full")
OWN_OPTIONS = {
    "value": "fixed",
    "noise": "gavish-donoho",
    "parameters": "budget",
    "floor": "budget",
}  # option -> the one rule that reads it
ENERGY_ROUNDING = 1e-12  # fp64 sums of squares differ by this share from one order of summing to the other
UNBOUNDED = 2**62  # larger than any rank: the rule asks for more terms than were computed


@dataclass(frozen=True)
class RankRule:
    """A recipe's `rank`: which rule decides, and what it reads.

    `tau` is the share of the energy, `max` the most terms, `value` the terms of rule fixed, `noise` the standard deviation of
    a weight's noise (rule gavish-donoho; None takes it from the median singular value), `parameters` the total and `floor`
    the terms that every module keeps first (rule budget). The elbow reads the first max + 1 singular values, or all of them
    where `spectrum` is full.
    """

    rule: str = "min"
    tau: float = 0.90
    elbow: str = "gap"
    max: int = 16
    value: int | None = None
    noise: float | None = None
    parameters: int | None = None
    floor: int = 0
    spectrum: str = "leading"

    def __post_init__(self) -> None:
        for name, value, known in (("rule", self.rule, rules()), ("elbow", self.elbow, ELBOWS), ("spectrum", self.spectrum, SPECTRA)):
            if value not in known:
                raise ValueError(f"rank.{name} {value!r} is none of: {', '.join(known)}")
        unset = {field.name: field.default for field in fields(self)}
        for name, reader in OWN_OPTIONS.items():
            if getattr(self, name) != unset[name] and self.rule != reader:
                raise ValueError(f"rank.{name} belongs to rule {reader}, and rule is {self.rule}")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"rank.tau {self.tau} is not in (0, 1]")
        if self.max < 1:
            raise ValueError(f"rank.max {self.max} is below 1")
        if self.rule == "fixed" and (self.value is None or self.value < 1):
            raise ValueError("rank.rule fixed needs a value of at least 1, e.g. {rule: fixed, value: 2}")
        if self.noise is not None and not 0.0 < self.noise < float("inf"):
            raise ValueError(f"rank.noise {self.noise} is no standard deviation: a finite number above 0")
        if self.rule == "budget" and (self.parameters is None or self.parameters < 1):
            raise ValueError("rank.rule budget needs parameters, the total over all modules, e.g. {rule: budget, parameters: 991353}")
        if not 0 <= self.floor <= self.max:
            raise ValueError(f"rank.floor {self.floor} is not between 0 and max, {self.max}")

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

    @property
    def reads_all(self) -> bool:
        """Whether every singular value is computed: asked for, or because the rule reads the median of them."""
        return self.spectrum == "full" or (self.rule == "gavish-donoho" and self.noise is None)

    def wanted_sigmas(self, full_rank: int) -> int:
        """How many leading singular values the rule and its record read."""
        return full_rank if self.reads_all else min(full_rank, max(self.max + 1, self.value or 0))

    def most_terms(self, full_rank: int) -> int:
        """Terms that the rule gives where nothing in the spectrum stops it."""
        return min(full_rank, self.value or self.max)

    def is_settled(self, sigma: Tensor, error_bound: Tensor, total_energy: float, shape: KronShape) -> bool:
        """Whether the choice is not unresolved with these bounds; arguments as for `choose_rank`. Reads no more than the rule does."""
        return _decided(Spectrum.of(sigma, error_bound, total_energy, self, shape))[1] != "unresolved"


@dataclass(frozen=True)
class RankChoice:
    """The rank of one module and what decided it.

    `ranks` is what each of READERS says by itself, None where the computed spectrum does not reach; `rank_energy` and
    `rank_elbow` are the two that rule min reads. `bound_by` is one of energy, elbow, gavish-donoho, max, fixed, budget,
    unresolved, full-rank, or a rule that was added. `energy_kept` and `energy_computed` are the shares of the total
    energy in the kept and in the computed terms.
    """

    rank: int
    rank_energy: int | None
    rank_elbow: int | None
    bound_by: str
    energy_kept: float
    energy_computed: float
    ranks: Mapping[str, int | None]


@dataclass(frozen=True)
class Reading:
    """The ranks between which a rule's answer lies, given the error bounds of the singular values."""

    low: int
    high: int


@dataclass(frozen=True)
class Spectrum:
    """What a rule may read of one weight.

    Attributes:
        sigma: [k] leading singular values of R(W), descending, fp64.
        error_bound: [k] absolute error of each.
        total_energy: ||W||_F^2, all singular values' squares.
        rule: the options of the recipe's section.
        shape: sizes of the factors; `shape.max_rank` singular values are there in all.
    """

    sigma: Tensor
    error_bound: Tensor
    total_energy: float
    rule: RankRule
    shape: KronShape

    @classmethod
    def of(cls, sigma: Tensor, error_bound: Tensor, total_energy: float, rule: RankRule, shape: KronShape) -> "Spectrum":
        """With the values in fp64 on the CPU; arguments as for `choose_rank`."""
        return cls(sigma.double().cpu(), error_bound.double().cpu(), total_energy, rule, shape)

    @cached_property
    def window(self) -> tuple[Tensor, Tensor]:
        """The values that an elbow is looked for in, and their bounds: the first max + 1, or all where `spectrum` is full."""
        end = self._end
        return self.sigma[:end], self.error_bound[:end]

    @cached_property
    def ended(self) -> tuple[Tensor, Tensor]:
        """The window, with a zero where it goes beyond the last value that there is."""
        values, bounds = self.window
        after_the_last = int(len(values) == self.shape.max_rank < self._end)  # an exact zero, of which every ratio is the largest
        return pad(values, (0, after_the_last)), pad(bounds, (0, after_the_last))

    @property
    def _end(self) -> int:
        return self.shape.max_rank + 1 if self.rule.spectrum == "full" else self.rule.max + 1


def choose_rank(sigma: Tensor, error_bound: Tensor, total_energy: float, rule: RankRule, shape: KronShape) -> RankChoice:
    """The rank that the rule gives for a spectrum. Under rule budget the most terms that `allocate` may give the module.

    Args:
        sigma: [k] leading singular values of R(W), descending.
        error_bound: [k] absolute error of each.
        total_energy: ||W||_F^2, all singular values' squares.
        rule: what decides.
        shape: sizes of the factors, which give R(W)'s sides and the number of singular values that there are.
    """
    spectrum = Spectrum.of(sigma, error_bound, total_energy, rule, shape)
    rank, bound_by = _decided(spectrum)
    ranks = {name: _known(read(spectrum)) for name, read in READERS.items()}
    return RankChoice(
        rank=rank,
        rank_energy=ranks["energy"],
        rank_elbow=ranks[rule.elbow],
        bound_by=bound_by,
        energy_kept=energy_share(spectrum.sigma, rank, total_energy),
        energy_computed=energy_share(spectrum.sigma, len(sigma), total_energy),
        ranks=ranks,
    )


def energy_reading(sigma: Tensor, error_bound: Tensor, total_energy: float, tau: float) -> Reading:
    """The smallest r with sum_{k<=r} sigma_k^2 >= tau ||W||_F^2; UNBOUNDED where it lies beyond the computed values."""

    def crossing(values: Tensor) -> int:
        reached = values.square().cumsum(0) >= tau * total_energy * (1 - ENERGY_ROUNDING)
        return int(reached.nonzero()[0]) + 1 if reached.any() else UNBOUNDED

    lowest, highest = _limits(sigma, error_bound)
    return Reading(crossing(highest), crossing(lowest))


def gap_reading(sigma: Tensor, error_bound: Tensor) -> Reading:
    """The paper's elbow: argmax_i (sigma_i - sigma_{i+1}), keep i. On a convex spectrum it is always 1."""
    if len(sigma) < 2:
        return Reading(1, 1)
    return _largest(*_gaps(*_limits(sigma, error_bound)))


def relative_gap_reading(sigma: Tensor, error_bound: Tensor) -> Reading:
    """The elbow by ratio: argmax_i (sigma_i - sigma_{i+1}) / sigma_i within the window that is given, keep i.

    It is the eigenvalue ratio estimator of Ahn and Horenstein (Econometrica 81, 2013), argmax sigma_i / sigma_{i+1}. As there it
    needs a window, the first max + 1 values: near the end of a whole spectrum small values make large ratios.
    """
    if len(sigma) < 2:
        return Reading(1, 1)
    lowest, highest = _limits(sigma, error_bound)
    kept_low, kept_high = lowest[1:] / highest[:-1], highest[1:] / lowest[:-1]  # of sigma_i; nothing of nothing is nan
    return _largest(1 - kept_high.nan_to_num(1.0).clamp(max=1.0), 1 - kept_low.nan_to_num(1.0))


def chord_reading(sigma: Tensor, error_bound: Tensor) -> Reading:
    """The elbow by distance: where the spectrum is farthest from the straight line between its first and last value (kneedle).

    Below the line the farthest value is the first of the tail, and the terms before it are kept; above the line it is the last of
    a plateau, and is kept. Source: Satopaa et al., Finding a "Kneedle" in a Haystack, ICDCS Workshops 2011, without smoothing.
    The package kneed names one point whatever the error bounds, so the rule stands here.
    """
    if len(sigma) < 3:
        return Reading(1, 1)
    lowest, highest = _limits(sigma, error_bound)
    along = torch.linspace(0, 1, len(sigma), dtype=sigma.dtype)
    below_low, below_high = ((ends[0] * (1 - along) + ends[-1] * along - values) for ends, values in ((lowest, highest), (highest, lowest)))
    inside = slice(1, -1)  # the ends lie on the line
    least = torch.maximum(below_low[inside], -below_high[inside]).max().clamp(min=0.0)
    before = (below_high[inside] >= least).nonzero().flatten() + 1
    upto = (-below_low[inside] >= least).nonzero().flatten() + 2
    kept = torch.cat([before, upto])
    return Reading(int(kept.min()), int(kept.max()))


def gavish_donoho_reading(sigma: Tensor, error_bound: Tensor, shape: KronShape, noise: float | None) -> Reading:
    """How many singular values of R(W), a x b with a <= b, stand out of noise by the optimal hard threshold.

    Known noise: sigma_k > lambda(a / b) sqrt(b) noise. Unknown: sigma_k > omega(a / b) median(sigma), which needs them all; UNBOUNDED
    without them, and where all computed values stand out and there are more. May be 0.
    """
    larger, smaller = sorted((shape.m * shape.n, shape.p * shape.q), reverse=True)
    lowest, highest = _limits(sigma, error_bound)
    if noise is not None:
        threshold_low = threshold_high = hard_threshold(smaller / larger) * larger**0.5 * noise
    elif len(sigma) < smaller:
        return Reading(UNBOUNDED, UNBOUNDED)
    else:
        threshold_low, threshold_high = (median_threshold(smaller / larger) * float(values.quantile(0.5)) for values in (lowest, highest))

    def above(values: Tensor, threshold: float) -> int:
        count = int((values > threshold).sum())
        return UNBOUNDED if count == len(sigma) < smaller else count

    return Reading(above(lowest, threshold_high), above(highest, threshold_low))


def energy_share(sigma: Tensor, rank: int, total_energy: float) -> float:
    """Energy of the first terms as a share of all; a zero weight loses nothing."""
    if total_energy == 0.0:
        return 1.0
    return min(1.0, float(sigma[:rank].square().sum()) / total_energy)


READERS: dict[str, Callable[[Spectrum], Reading]] = {
    "energy": lambda spectrum: energy_reading(spectrum.sigma, spectrum.error_bound, spectrum.total_energy, spectrum.rule.tau),
    "gap": lambda spectrum: gap_reading(*spectrum.ended),
    "relative-gap": lambda spectrum: relative_gap_reading(*spectrum.window),
    "chord": lambda spectrum: chord_reading(*spectrum.ended),
    "gavish-donoho": lambda spectrum: gavish_donoho_reading(spectrum.sigma, spectrum.error_bound, spectrum.shape, spectrum.rule.noise),
}
"""What each rule and elbow says of a spectrum by itself. A further entry is a further rule (docs/extending.md)."""


def rules() -> tuple[str, ...]:
    """The names that `rule` may have."""
    return (*COMBINED, *(name for name in READERS if name not in ELBOWS))


def _decided(spectrum: Spectrum) -> tuple[int, str]:
    """The rank, at least 1, and what bounds it. Reads no more than the rule does."""
    rule, full_rank = spectrum.rule, spectrum.shape.max_rank
    asked = {"min": ("energy", rule.elbow), "elbow": (rule.elbow,), "fixed": (), "budget": ()}.get(rule.rule, (rule.rule,))
    readings = {"elbow" if name in ELBOWS else name: READERS[name](spectrum) for name in asked}
    wanted, most = rule.value or rule.max, rule.most_terms(full_rank)
    readings["full-rank" if wanted > full_rank else "fixed" if rule.rule == "fixed" else "max"] = Reading(most, most)
    rank = max(1, min(reading.low for reading in readings.values()))
    if rank != max(1, min(reading.high for reading in readings.values())):
        return rank, "unresolved"
    return rank, next(name for name, reading in readings.items() if max(1, reading.low) == rank)


def _limits(sigma: Tensor, error_bound: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest true values. True values descend, so a neighbour's limit is a limit too."""
    lowest = (sigma - error_bound).clamp(min=0.0).flip(0).cummax(0).values.flip(0)
    return lowest, (sigma + error_bound).cummin(0).values


def _gaps(lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest sigma_i - sigma_{i+1}."""
    return (lowest[:-1] - highest[1:]).clamp(min=0.0), highest[:-1] - lowest[1:]


def _largest(low: Tensor, high: Tensor) -> Reading:
    """Every place, counted from 1, whose value may be the largest of all, where each lies between low and high."""
    candidates = (high >= low.max()).nonzero()
    return Reading(int(candidates[0]) + 1, int(candidates[-1]) + 1)


def _known(reading: Reading) -> int | None:
    return None if reading.low == UNBOUNDED else reading.low
