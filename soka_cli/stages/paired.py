"""Two models asked the same items: is the difference more than chance? Exact, item by item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Paired:
    """`better` of the `items` that both answered went better with the first model, `worse` with the second, the others equally.

    `p` is McNemar's exact test: were both equally good, each differing item would be a fair coin, and this is the chance of a split
    that is at least as uneven. Of items with several samples the shares of right ones are compared (the sign test).
    """

    items: int
    better: int
    worse: int
    p: float


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Paired:
    """Compare shares of right samples by item id, over the items that both have."""
    shared = [item for item in first if item in second]
    better = sum(first[item] > second[item] for item in shared)
    worse = sum(first[item] < second[item] for item in shared)
    return Paired(len(shared), better, worse, two_sided(better, worse))


def two_sided(better: int, worse: int) -> float:
    """Chance of a split at least as uneven as this one in better + worse tosses of a fair coin."""
    tosses = better + worse
    tail = sum(comb(tosses, heads) for heads in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**tosses))


def holm(chances: Sequence[float]) -> list[float]:
    """The chances raised by Holm's step-down method, for as many tests as there are."""
    raised = [0.0] * len(chances)
    least = 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=lambda one: chances[one])):
        least = max(least, min(1.0, (len(chances) - place) * chances[index]))
        raised[index] = least
    return raised
