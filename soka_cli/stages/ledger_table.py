"""The ledger of rows as people read it: a line for each set of rows, and for each source where there are several."""

from collections.abc import Iterator, Mapping
from typing import Any

from soka_cli.stages.outcome import Cell, Table

COLUMNS = ("rows", "read", "used", "cut", "left out", "tokens a row", "learnt a row", "longest")


def ledger_lines(ledgers: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Cell]]:
    """`{train: ledger, ...}` -> a line each, by COLUMNS; `left out` tells the reasons with the first rows of each."""
    for name, ledger in ledgers.items():
        if "read" not in ledger:  # the figures of packing are no ledger
            continue
        yield line(name, ledger)
        for source in ledger.get("sources", ()):
            yield line(f"{name}, {source['path']}", source)


def line(name: str, ledger: Mapping[str, Any]) -> dict[str, Cell]:
    used = ledger["used"] or 1
    values = (
        name,
        ledger["read"],
        ledger["used"],
        counted(ledger["truncated"], ledger["truncated_rows"]),
        "; ".join(f"{counted(count, ledger['dropped_rows'][reason])}: {reason}" for reason, count in ledger["dropped"].items()) or "none",
        round(ledger["tokens"] / used, 1),
        round(ledger["supervised_tokens"] / used, 1),
        ledger["longest"],
    )
    return dict(zip(COLUMNS, values, strict=True))


def counted(count: int, numbers: list[int]) -> str:
    """`3 (rows 0, 4, 9)`, `none`."""
    if not count:
        return "none"
    more = ", ..." if count > len(numbers) else ""
    return f"{count} (row{'s' if count > 1 else ''} {', '.join(map(str, numbers))}{more})"


def ledger_table(title: str, ledgers: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(title, COLUMNS, tuple(tuple(found.values()) for found in ledger_lines(ledgers)))
