"""The solved items that a protocol puts in front of a question."""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import repeat
from random import Random
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.latex_answer import last_box
from soka_cli.tasks.protocol import AskingProtocol, Shots

Row = dict[str, Any]

MINERVA_END = "\nFinal Answer: The final answer is ${answer}$. I hope it is correct."


def shots_for(protocol: AskingProtocol, rows: Sequence[Row] | None) -> Iterator[Sequence[Row]]:
    """The shots of one item after the other, in the data's order, without end.

    Args:
        rows: training rows, where the protocol takes its shots from them.

    Raises:
        SokaError: exit 4 where the rows are too few, or not those that the protocol picks.
    """
    if protocol.shots is None:
        return repeat(())
    if protocol.shots.of == "file":
        return repeat(packaged_shots(protocol.shots))
    assert rows is not None
    if protocol.shots.of == "picked":
        return repeat(picked_shots(protocol.shots, rows))
    return drawn_shots(protocol.shots, rows)


def packaged_shots(shots: Shots) -> list[Row]:
    """The first `count` lines of the protocol's file."""
    lines = shots.path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[: shots.count]]


def drawn_shots(shots: Shots, rows: Sequence[Row]) -> Iterator[list[Row]]:
    """A fresh sample for each item from one generator, as lm-evaluation-harness draws (lm_eval/api/samplers.py, one process).

    An item's shots depend on its place among the items and on the rows' order, not on how many items are asked.
    """
    if len(rows) < shots.count:
        raise SokaError(
            f"There are {len(rows)} rows to draw {shots.count} shots from.",
            where="eval: shots",
            hint="name the benchmark's training rows: shots: {path: train.jsonl}",
            exit_code=ExitCode.DATA,
        )
    generator = Random(shots.seed)

    def draw() -> Iterator[list[Row]]:
        while True:
            yield generator.sample(rows, shots.count)

    return draw()


def picked_shots(shots: Shots, rows: Sequence[Row]) -> list[Row]:
    """MATH's training problems that Minerva's prompt uses, found by the digest of their words and laid out as it prints them.

    The texts are the data set's and lie in no package, so they come from the user's own rows.
    """
    by_words = {_digest(str(row.get("problem", ""))): row for row in rows}
    return [_picked(layout, by_words) for layout in json.loads(shots.path.read_text(encoding="utf-8"))[: shots.count]]


def _picked(layout: dict[str, Any], rows: dict[str, Row]) -> Row:
    row = rows.get(layout["problem"]["words_sha256"])
    if row is None or _digest(str(row.get("solution"))) != layout["solution"]["words_sha256"]:
        raise SokaError(
            "The rows lack a problem that the protocol shows solved, or solve it in other words.",
            where=f"eval: shots; digest of the problem's words {layout['problem']['words_sha256'][:12]}",
            hint="name MATH's own training rows, all 7,500: shots: {path: train.jsonl}",
            exit_code=ExitCode.DATA,
        )
    answer = last_box(row["solution"]) or ""
    problem, solution = (_laid_out(row[part], layout[part]["breaks"]) for part in ("problem", "solution"))
    return {"problem": problem, "solution": solution + MINERVA_END.replace("{answer}", answer)}


def _digest(text: str) -> str:
    return sha256(" ".join(text.split()).encode()).hexdigest()


def _laid_out(text: str, breaks: dict[str, str]) -> str:
    """The text's words with single spaces, save where `breaks` names another gap behind a word's number."""
    words = text.split()
    gaps = [breaks.get(str(index), " ") for index in range(len(words) - 1)] + [""]
    return "".join(word + gap for word, gap in zip(words, gaps, strict=True))
