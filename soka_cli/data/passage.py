"""One row as text, with the part that is learnt."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A row's whole text and the spans of it, [start, end) in characters, that the model learns to write.

    Spans are in order and do not overlap. What follows the last one is not read.
    """

    text: str
    learnt: tuple[tuple[int, int], ...]
