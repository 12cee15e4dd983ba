"""Runs of one configuration together: the mean over its seeds, and how far they spread."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.stages.contestant import Contestant
from soka_cli.tasks.mean import mean

Figure = Callable[[Contestant], float | None]


@dataclass(frozen=True)
class OverSeeds:
    """What the seeds of one configuration came to: by figure, (mean, sample standard deviation); the latter None for one seed alone,
    both None where a run lacks the figure."""

    name: str
    runs: tuple[Contestant, ...]
    figures: dict[str, tuple[float | None, float | None]]

    @property
    def seeds(self) -> list[int]:
        return [run.recipe.seed for run in self.runs]

    def to_mapping(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "runs": [run.name for run in self.runs],
            "seeds": self.seeds,
            "figures": {name: {"mean": middle, "spread": spread} for name, (middle, spread) in self.figures.items()},
        }


def over_seeds(runs: Sequence[Contestant], figures: Mapping[str, Figure]) -> list[OverSeeds]:
    """The runs by configuration, in their order."""
    groups: dict[str, list[Contestant]] = {}
    for run in runs:
        groups.setdefault(run.configuration, []).append(run)
    return [
        OverSeeds(some[0].name_without_seed, tuple(some), {name: over([figure(run) for run in some]) for name, figure in figures.items()})
        for some in groups.values()
    ]


def over(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return mean(known), spread(known)


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for one value, whose spread is unknown."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))
