"""Texts that stand in two places: benchmark items in training rows, by runs of 13 words and by whole problems."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import numpy
from numpy.typing import NDArray

NGRAM = 13
WORD = re.compile(r"[^\W_]+")
DEFINITION = (
    f"A row and an item overlap where a run of {NGRAM} words of the item's problem or solution stands in a text of the row (its prompt, "
    "its target, or a message of its conversation), or where the item's whole problem is such a text. Words are runs of letters and "
    f"digits in lower case; all else only separates them. A problem of fewer than {NGRAM} words is found as a whole one alone."
)
SHOWN_ROWS = 20  # rows named for an item; all are counted
CHUNK = 4096  # rows looked up together
TABLE_BITS = 24  # of a run's number, by which most runs are passed over

Integers = NDArray[numpy.int64]
Runs = NDArray[numpy.uint64]


RowName = tuple[int, int]
"""What a row is named by: the place of its source among the training sources, and its own in that source."""


@dataclass(frozen=True)
class Item:
    """What an evaluation asks and what solves it."""

    problem: str
    solution: str


@dataclass(frozen=True)
class RowTexts:
    """A training row's texts: prompt and target, or the messages of a conversation."""

    name: RowName
    texts: tuple[str, ...]


@dataclass(frozen=True)
class ItemOverlap:
    """One item that stands in training rows, in part or whole.

    Attributes:
        exact: its whole problem is a whole text of some row.
        problem, solution: share of that text's different runs that stand in some row; None where it has fewer than 13 words.
        rows: the first rows with any of it.
        row_count: number of all of them.
    """

    exact: bool
    problem: float | None
    solution: float | None
    rows: tuple[RowName, ...]
    row_count: int


@dataclass(frozen=True)
class Overlap:
    """What one pass over the rows found.

    Attributes:
        scanned: rows that were looked at.
        rows: those that overlap with an item, in their order.
        items: by the item's place, those that overlap with a row.
    """

    scanned: int
    rows: tuple[RowName, ...]
    items: dict[int, ItemOverlap]


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return WORD.findall(text.lower())


class OverlapIndex:
    """The runs of words of a benchmark's items, which rows are looked up in.

    A run is known by a 64-bit number: the sum of its words' random codes, each times an odd factor of its place. Two different runs
    share one with a chance of about 2^-60, so a million runs of items and a hundred million of rows meet by accident in one of ten
    thousand passes; beyond that nothing is compared word by word.

    Args:
        items: what is looked for.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.size = len(items)
        self.problems: defaultdict[str, list[int]] = defaultdict(list)  # whole problem, normalised -> places of its items
        self.vocabulary: dict[str, int] = {}  # 0 is a word that no item has
        texts = [self._learn(text) for item in items for text in (item.problem, item.solution)]
        for place, item in enumerate(items):
            if found := words(item.problem):
                self.problems[" ".join(found)].append(place)
        generator = numpy.random.default_rng(0)
        self._codes: Runs = generator.integers(0, 2**64, size=len(self.vocabulary) + 1, dtype=numpy.uint64)
        self._factors: Runs = generator.integers(0, 2**64, size=NGRAM, dtype=numpy.uint64) | numpy.uint64(1)
        runs = [numpy.unique(self.runs(text)) for text in texts]
        every: Runs = numpy.concatenate([numpy.empty(0, numpy.uint64), *runs])
        # owners: 2 * place for an item's problem, 2 * place + 1 for its solution, sorted by run
        owners: Integers = numpy.repeat(numpy.arange(2 * self.size), [len(some) for some in runs])
        order = numpy.argsort(every, kind="stable")
        self.owners = owners[order]
        self.known, self.starts, self.shared = numpy.unique(every[order], return_index=True, return_counts=True)
        self._table = numpy.zeros(2**TABLE_BITS, dtype=bool)
        self._table[self._cell(self.known)] = True

    def _learn(self, text: str) -> Integers:
        return numpy.array([self.vocabulary.setdefault(word, len(self.vocabulary) + 1) for word in words(text)], dtype=numpy.int64)

    def _cell(self, runs: Runs) -> Runs:
        return runs >> numpy.uint64(64 - TABLE_BITS)

    def runs(self, ids: Integers) -> Runs:
        """The number of the run that begins at each word, for as many as have 13 words from there."""
        codes, count = self._codes[ids], max(len(ids) - NGRAM + 1, 0)
        found: Runs = numpy.zeros(count, dtype=numpy.uint64)
        for place, factor in enumerate(self._factors):
            found += codes[place : place + count] * factor
        return found

    def look_up(self, runs: Runs) -> tuple[Integers, Integers]:
        """Of the runs that some item has: their places in `runs`, and theirs in `known`."""
        places = numpy.flatnonzero(self._table[self._cell(runs)])
        if not len(places):
            return places, places
        found = numpy.minimum(numpy.searchsorted(self.known, runs[places]), len(self.known) - 1)
        same = self.known[found] == runs[places]
        return places[same], found[same]

    def overlap(self, rows: Iterable[RowTexts], told: Callable[[int], None] = lambda count: None) -> Overlap:
        """Look rows up, once, as they come.

        Args:
            told: called with the number of rows that were looked at since the last call.
        """
        tally = _Tally(self)
        stream = iter(rows)
        while chunk := list(islice(stream, CHUNK)):
            tally.add(chunk)
            told(len(chunk))
        return tally.overlap()


class _Tally:
    """What the rows so far have of the items."""

    def __init__(self, index: OverlapIndex) -> None:
        self.index = index
        self.seen = numpy.zeros(len(index.known), dtype=bool)
        self.exact: set[int] = set()
        self.first_rows: defaultdict[int, list[RowName]] = defaultdict(list)
        self.row_counts: Integers = numpy.zeros(index.size, dtype=numpy.int64)
        self.rows: list[RowName] = []
        self.scanned = 0

    def add(self, chunk: Sequence[RowTexts]) -> None:
        """Look up a chunk's texts together."""
        ids: list[int] = []
        ends: list[int] = []
        owners: list[int] = []  # of each text, its row's place in the chunk
        meetings: list[Integers] = []  # (2, any): the row's place in the chunk, the item's place
        for place, row in enumerate(chunk):
            for text in row.texts:
                found = words(text)
                ids.extend(map(self.index.vocabulary.get, found, repeat(0)))
                ids.append(0)  # no run goes from one text into the next
                ends.append(len(ids))
                owners.append(place)
                if same := self.index.problems.get(" ".join(found)):
                    self.exact.update(same)
                    meetings.append(numpy.array([[place] * len(same), same]))
        places, known = self.index.look_up(self.index.runs(numpy.array(ids, dtype=numpy.int64)))
        self.seen[known] = True
        texts = numpy.searchsorted(numpy.array(ends), places, side="right")
        meetings.append(self._meetings(numpy.array(owners, dtype=numpy.int64)[texts], known))
        self._count(chunk, numpy.unique(numpy.concatenate(meetings, axis=1), axis=1))
        self.scanned += len(chunk)

    def _meetings(self, rows: Integers, known: Integers) -> Integers:
        """Rows and the items that own the runs found there, (2, any)."""
        rows, known = numpy.unique(numpy.stack([rows, known]), axis=1)
        shared = self.index.shared[known]
        within = numpy.arange(shared.sum()) - numpy.repeat(numpy.cumsum(shared) - shared, shared)
        owners = self.index.owners[numpy.repeat(self.index.starts[known], shared) + within]
        return numpy.stack([numpy.repeat(rows, shared), owners // 2])

    def _count(self, chunk: Sequence[RowTexts], meetings: Integers) -> None:
        rows, items = meetings
        self.row_counts += numpy.bincount(items, minlength=self.index.size)
        self.rows.extend(chunk[place].name for place in numpy.unique(rows))
        for place, item in meetings.T.tolist():
            if len(self.first_rows[item]) < SHOWN_ROWS:
                self.first_rows[item].append(chunk[place].name)

    def overlap(self) -> Overlap:
        shares = self._shares()
        met = numpy.flatnonzero(self.row_counts).tolist()
        return Overlap(self.scanned, tuple(self.rows), {place: self._item(place, *shares) for place in met})

    def _shares(self) -> tuple[Integers, Integers]:
        """Of each owner: how many of its runs were seen, and how many it has."""
        seen = numpy.repeat(self.seen, self.index.shared)
        owners, size = self.index.owners, 2 * self.index.size
        return numpy.bincount(owners[seen], minlength=size), numpy.bincount(owners, minlength=size)

    def _item(self, place: int, seen: Integers, every: Integers) -> ItemOverlap:
        problem, solution = (float(seen[owner] / every[owner]) if every[owner] else None for owner in (2 * place, 2 * place + 1))
        return ItemOverlap(place in self.exact, problem, solution, tuple(self.first_rows[place]), int(self.row_counts[place]))
