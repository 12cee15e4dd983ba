"""The mean over items and how sure it is."""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values: sample standard deviation / sqrt(count); None for one value, whose spread is unknown."""
    count = len(values)
    if count < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (count - 1) / count)
