"""Times of several ways that take turns, so that what else the machine does falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Times:
    """CPU seconds of one way, one entry a repetition; of the calling thread alone, so what it waits for does not count."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: "Times") -> float:
        """The median of the ratios, repetition by repetition."""
        return statistics.median(self._ratios(other))

    def spread(self, other: "Times") -> str:
        """The ratios' median, and between which values the middle half of them lies."""
        low, middle, high = statistics.quantiles(self._ratios(other), n=4)
        return f"{middle:.3f} ({low:.3f}-{high:.3f})"

    def _ratios(self, other: "Times") -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Every way once a repetition, after one that is not counted."""
    times = {name: Times() for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            started = time.thread_time()
            way()
            if number:
                times[name].seconds.append(time.thread_time() - started)
    return times
