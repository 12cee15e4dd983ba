"""Rows into packs of at most so many tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(order: Sequence[int], lengths: Sequence[int], most: int) -> list[list[int]]:
    """Best-fit decreasing: the longest row first, each into the fullest pack that has room for it.

    Rows of one length are taken in their order, so another order makes other packs. Every row is in one pack.

    Args:
        order: rows, each by its index into `lengths`.
        lengths: tokens of each row, none above `most`.
        most: tokens of a pack at most.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, pack), ascending
    for row in sorted(order, key=lambda row: -lengths[row]):
        found = bisect_left(rooms, (lengths[row], -1))
        if found < len(rooms):
            room, chosen = rooms.pop(found)
        else:
            room, chosen = most, len(packs)
            packs.append([])
        packs[chosen].append(row)
        if room > lengths[row]:
            insort(rooms, (room - lengths[row], chosen))
    return packs
