"""Do adapter and merged model write the same? Item by item, with how close the choice was where they do not."""

from dataclasses import dataclass
from typing import Any

from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines

NEAR_TIE = 0.05  # logits; a merged weight is rounded once to the model's type, which moves logits by about that in bfloat16


@dataclass(frozen=True)
class Difference:
    """One item whose completions differ. `smallest_gap` is the least lead of a chosen token over the next best that either met."""

    id: str
    adapter: str
    merged: str
    smallest_gap: float | None
    same_verdict: bool

    @property
    def near_tie(self) -> bool:
        return self.smallest_gap is not None and self.smallest_gap < NEAR_TIE


@dataclass(frozen=True)
class Agreement:
    """`equal` of `items` completions are the same, character by character."""

    items: int
    equal: int
    differences: tuple[Difference, ...]

    @property
    def near_ties(self) -> int:
        return sum(difference.near_tie for difference in self.differences)

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        differing = [vars(difference) | {"near_tie": difference.near_tie} for difference in self.differences]
        return {"items": self.items, "equal": self.equal, "near_ties": self.near_ties, "near_tie_below": NEAR_TIE, "differing": differing}


def agreement(layout: RunLayout, name: str) -> Agreement | None:
    """Compare eval/<name>-merged with eval/<name>-adapter over the items that both hold; None where one is missing."""
    paths = [layout.predictions(name, kind) for kind in ("adapter", "merged")]
    if not all(path.is_file() for path in paths):
        return None
    adapter, merged = ({(row["id"], row["sample"]): row for row in read_lines(path)} for path in paths)
    shared = [key for key in adapter if key in merged]
    different = tuple(compare(adapter[key], merged[key]) for key in shared if adapter[key]["completion"] != merged[key]["completion"])
    return Agreement(items=len(shared), equal=len(shared) - len(different), differences=different)


def compare(adapter: dict[str, Any], merged: dict[str, Any]) -> Difference:
    gaps = [row["smallest_gap"] for row in (adapter, merged) if row.get("smallest_gap") is not None]
    return Difference(
        id=adapter["id"],
        adapter=adapter["completion"],
        merged=merged["completion"],
        smallest_gap=min(gaps, default=None),
        same_verdict=adapter["correct"] == merged["correct"],
    )
