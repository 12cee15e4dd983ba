"""What decompose warns of, each with what to do about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

UNMATCHED = "in target_modules matches nothing"
SHARED = "is left out: it shares its weight with"

ADVICE = {
    UNMATCHED: "Correct the name in adapter.target_modules, or drop it: soka plan shows the kinds of modules that there are.",
    SHARED: "Nothing is to be done: the two could not be adapted apart.",
}
"""By what the sentence says, as stages/work.py writes it."""


@dataclass(frozen=True)
class Caution:
    """A warning and what to do about it."""

    sentence: str
    advice: str


def cautions(warnings: Sequence[str], unresolved: Sequence[str], *, rule: str) -> Iterator[Caution]:
    """The warnings of layers.json, and the modules whose rank the error bounds leave open."""
    for sentence in warnings:
        advice = next((words for phrase, words in ADVICE.items() if phrase in sentence), "")
        yield Caution(f"{sentence}.", advice)
    if unresolved:
        yield Caution(
            f"{unresolved_text(len(unresolved), rule)}: {', '.join(unresolved)}.",
            "Either choice keeps the same energy within the bounds; adapter.rank={rule: fixed, value: N} leaves nothing open.",
        )


def unresolved_text(number: int, rule: str) -> str:
    taken = "terms were taken in the order of the modules" if rule == "budget" else "the smaller was taken"
    return f"{number} ranks hang on singular values closer than their error bounds; {taken}"
