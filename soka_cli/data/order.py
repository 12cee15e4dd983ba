"""The order in which training reads its rows: a pure function of the seed and the number of the pass, known before step 1."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import ceil
from typing import TypeVar

from soka_cli.data.pack import pack

Value = TypeVar("Value")

KEPT = 2  # passes held at a time


@dataclass(frozen=True)
class Mixture:
    """How the rows of several sources make up one pass.

    A pass has as many rows as all sources together. Without weights each row is read once. With weights source i has the share
    weight_i / sum of weights of every pass: one that is too small for its share begins anew within the pass, in another order; one
    that is too large goes on in the next pass where it stopped, so that none of its rows is read twice before all were once.

    Args:
        counts: rows of each source.
        weights: of each source; None reads every row once.
        seed: fixes all orders.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    seed: int = 0

    @property
    def rows(self) -> int:
        """Rows in a pass."""
        return sum(self.counts)

    def shares(self) -> list[int]:
        """Rows of each source in a pass, by largest remainder."""
        if self.weights is None:
            return list(self.counts)
        total = sum(map(Fraction, self.weights))
        exact = [self.rows * Fraction(weight) / total for weight in self.weights]
        shares = [int(share) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda source: (shares[source] - exact[source], source))
        for source in by_remainder[: self.rows - sum(shares)]:
            shares[source] += 1
        return shares

    def order(self, number: int) -> list[int]:
        """The rows of pass `number` (0-based) as they are read, counted through all sources."""
        starts = accumulate(self.counts, initial=0)
        found = [
            start + row
            for source, (start, share) in enumerate(zip(starts, self.shares(), strict=False))
            for row in self._drawn(source, number * share, share)
        ]
        return found if len(self.counts) == 1 else shuffled(found, self.seed, "pass", number)

    def _drawn(self, source: int, begin: int, share: int) -> list[int]:
        """Rows [begin, begin + share) of a source's endless row of orders."""
        count = self.counts[source]
        first, last = begin // count, (begin + share - 1) // count if share else begin // count - 1
        orders = [row for cycle in range(first, last + 1) for row in shuffled(range(count), self.seed, "source", source, cycle)]
        return orders[begin - first * count :][:share]


def shuffled(values: Sequence[Value], *seeds: int | str) -> list[Value]:
    """The values in an order that the seeds alone decide, on every machine."""
    found = list(values)
    random.Random("/".join(map(str, seeds))).shuffle(found)
    return found


class ReadingOrder:
    """What training reads, item after item, pass after pass without end. An item is a row, or a pack of rows under packing.

    Args:
        mixture: the rows of a pass.
        lengths: tokens of each row, counted through all sources; with them rows are packed, without them each is an item.
        most: tokens of a pack at most.
    """

    def __init__(self, mixture: Mixture, lengths: Sequence[int] | None = None, most: int = 0) -> None:
        self.mixture = mixture
        self.lengths = lengths
        self.most = most
        self.ends: list[int] = []  # items read when a pass ends, of the packed passes known so far
        self._pass = lru_cache(maxsize=KEPT)(self._made)

    @property
    def packed(self) -> bool:
        """Whether an item is a pack."""
        return self.lengths is not None

    def pass_items(self, number: int) -> list[list[int]]:
        """The items of pass `number`, each its rows."""
        return self._pass(number)

    def _made(self, number: int) -> list[list[int]]:
        order = self.mixture.order(number)
        if self.lengths is None:
            return [[row] for row in order]
        packs = pack(order, self.lengths, self.most)
        return [packs[index] for index in shuffled(range(len(packs)), self.mixture.seed, "packs", number)]

    def __getitem__(self, index: int) -> list[int]:
        """The rows of item `index`, counted from the first item of the first pass."""
        number, place = self._place(index)
        return self.pass_items(number)[place]

    def items(self, passes: float) -> int:
        """Items in so many passes; a part of a pass is rounded up."""
        exact = Fraction(str(passes))
        return self._end(int(exact)) + ceil((exact - int(exact)) * self._size(int(exact)))

    def passes(self, items: int) -> float:
        """Passes that so many items are."""
        number, place = self._place(items)
        return number + place / self._size(number)

    def packing(self) -> dict[str, float]:
        """What packing makes of the first pass: rows, packs, and the share of the packs' room that rows fill."""
        assert self.lengths is not None
        packs = self.pass_items(0)
        tokens = sum(self.lengths[row] for rows in packs for row in rows)
        return {"rows": sum(map(len, packs)), "packs": len(packs), "filled": tokens / (len(packs) * self.most)}

    def _size(self, number: int) -> int:
        return self._end(number + 1) - self._end(number)

    def _end(self, number: int) -> int:
        """Items before pass `number`."""
        if self.lengths is None:
            return number * self.mixture.rows
        while len(self.ends) < number:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(self.pass_items(len(self.ends))))
        return self.ends[number - 1] if number else 0

    def _place(self, index: int) -> tuple[int, int]:
        """Pass of an item, and its place there."""
        if self.lengths is None:
            return divmod(index, self.mixture.rows)
        while not self.ends or self.ends[-1] <= index:
            self._end(len(self.ends) + 1)
        number = bisect_right(self.ends, index)
        return number, index - self._end(number)
