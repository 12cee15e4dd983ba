"""The README's table of protocols says what the protocol files say."""

import re

import pytest

from soka_cli.recipe.schema import TASK_PROTOCOLS
from soka_cli.tasks.protocol import protocol_named
from tests.builders import REPOSITORY

CODE = re.compile(r"`([^`]*)`")
Row = tuple[str, str, int, tuple[str, ...], int]


def stop_strings(cell: str) -> tuple[str, ...]:
    """The strings of a cell, in which line breaks and bars are escaped."""
    named = tuple(one.replace("\\n", "\n") for one in CODE.findall(cell.replace("\\|", "|")))
    return tuple(text for one in named for text in (f"{one}:", one)) if cell.endswith("with a colon") else named


def rows() -> list[Row]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("\n## What a score means\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return [
        (protocol.strip("`"), task, int(shots), stop_strings(stops), int(tokens))
        for protocol, tasks, _, shots, stops, tokens in cells
        for task in tasks.split(", ")
    ]


def test_every_protocol_of_every_task_has_a_row() -> None:
    assert sorted(row[:2] for row in rows()) == sorted((name, task) for task, names in TASK_PROTOCOLS.items() for name in names)


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(row[:2]))
def test_a_row_has_the_protocol_s_shots_stop_strings_and_longest_answer(row: Row) -> None:
    name, task, shots, stops, tokens = row
    protocol = protocol_named(name, task)
    assert (protocol.shots.count if protocol.shots else 0) == shots
    assert protocol.stops == stops
    assert protocol.max_new_tokens == tokens
