"""All that a training run reads, in order."""

from collections.abc import Sequence
from dataclasses import dataclass

from soka_cli.data.encode import EncodedRow
from soka_cli.data.order import ReadingOrder


@dataclass(frozen=True)
class Curriculum:
    """The items of a whole run, as a data set that is read from its first to its last.

    Since it holds every pass, a batch is always full: where a pass ends inside one, the next pass fills it up.

    Args:
        rows: encoded rows of all sources, one source behind the other.
        order: which rows make up which item.
        length: items in all.
    """

    rows: Sequence[EncodedRow]
    order: ReadingOrder
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> EncodedRow | list[EncodedRow]:
        """A row, or under packing the rows of a pack."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        found = [self.rows[row] for row in self.order[index]]
        return found if self.order.packed else found[0]
