"""What became of the rows of a data source: which were used, cut or left out, and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NAMED = 5  # rows that are named for each reason; the others are counted


@dataclass
class Ledger:
    """What became of the rows: `read` = `used` + the sum of `dropped`.

    `truncated` rows are used and lost their end (and the end-of-sequence token) at max_length; `apart` rows had their target
    tokenised on its own, because prompt and target together do not begin with the prompt's tokens. `dropped_rows` and
    `truncated_rows` are the numbers of the first rows of each kind.
    """

    read: int = 0
    used: int = 0
    truncated: int = 0
    apart: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    truncated_rows: list[int] = field(default_factory=list)

    def drop(self, reason: str, number: int) -> None:
        """Count a row that is left out; `number` is its own in the data source."""
        self.dropped[reason] += 1
        _name(self.dropped_rows.setdefault(reason, []), number)

    def use(self, number: int, *, tokens: int, supervised: int, truncated: bool) -> None:
        """Count a row that is learnt from: its tokens as they are fed, those that the loss sees, and whether it was cut."""
        self.used += 1
        self.tokens += tokens
        self.supervised_tokens += supervised
        self.longest = max(self.longest, tokens)
        if truncated:
            self.truncated += 1
            _name(self.truncated_rows, number)

    def add(self, other: "Ledger", first_row: int = 0) -> None:
        """Count the rows of another source as well; rows are then numbered through, its own from `first_row` on."""
        for name in ("read", "used", "truncated", "apart", "tokens", "supervised_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.dropped += other.dropped
        for reason, numbers in other.dropped_rows.items():
            for number in numbers:
                _name(self.dropped_rows.setdefault(reason, []), first_row + number)
        for number in other.truncated_rows:
            _name(self.truncated_rows, first_row + number)

    def reasons(self) -> str:
        """`3 rows: the target is empty (rows 0, 4, 9); ...`; empty where no row was left out."""
        return "; ".join(f"{count} rows: {reason} ({self.rows_named(reason)})" for reason, count in self.dropped.items())

    def rows_named(self, reason: str | None = None) -> str:
        """`rows 0, 4, 9, ...`: the first rows that were left out for `reason`, or that were cut where it is None."""
        numbers = self.truncated_rows if reason is None else self.dropped_rows.get(reason, [])
        count = self.truncated if reason is None else self.dropped[reason]
        more = ", ..." if count > len(numbers) else ""
        return f"row{'s' if count > 1 else ''} {', '.join(map(str, numbers))}{more}"

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "dropped": dict(self.dropped)}


def _name(numbers: list[int], number: int) -> None:
    if len(numbers) < NAMED:
        numbers.append(number)
