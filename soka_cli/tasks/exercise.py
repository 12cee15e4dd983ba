"""What judging a program takes: its tests and what they need. Travels as text, the `gold` of a code benchmark's items."""

import ast
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox.inside.demands import Demands


@dataclass(frozen=True)
class Exercise:
    """One item's tests.

    Attributes:
        tests: Python texts that raise nothing if the program is right.
        setup: runs before them.
        prompt: the beginning of the program, where a completion goes on from it.
        entry_point: the function that is asked for; empty where only the tests name it.
    """

    tests: tuple[str, ...]
    setup: str = ""
    prompt: str = ""
    entry_point: str = ""

    def to_text(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> "Exercise":
        """ValueError for a text that `to_text` did not write."""
        fields = json.loads(text)
        if (
            not isinstance(fields, dict)
            or not isinstance(tests := fields.get("tests"), list)
            or not all(isinstance(one, str) for one in tests)
        ):
            raise ValueError("no list of tests")
        words = {name: fields.get(name, "") for name in ("setup", "prompt", "entry_point")}
        if wrong := [name for name, value in words.items() if not isinstance(value, str)]:
            raise ValueError(f"{wrong[0]} is no text")
        return cls(tuple(tests), **words)

    @property
    def wanted(self) -> frozenset[str]:
        """Names that a program has to define."""
        return frozenset({self.entry_point}) if self.entry_point else frozenset(Demands(self.setup, list(self.tests)).names)


def checked(exercise: Exercise, where: str) -> Exercise:
    """The exercise if there is something to run and all of it is Python; SokaError (exit 4) naming what is not."""
    if not exercise.tests:
        raise damaged("has no test, so any program would be right", where)
    for text in (exercise.setup, *exercise.tests):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise damaged(f"has tests that are no Python ({error})", where) from error
    return exercise


def text_of(row: Mapping[str, Any], column: str, where: str, *, absent: str | None = None) -> str:
    """A column's text; `absent` stands for one that is not there. SokaError (exit 4) for anything else."""
    value = row.get(column, absent)
    if not isinstance(value, str):
        raise damaged(f"has no text in field {column}", f"{where}; it has {', '.join(map(str, row))}")
    return value


def texts_of(row: Mapping[str, Any], column: str, where: str, *, absent: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """A column's list of texts."""
    value = row.get(column, absent)
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise damaged(f"has no list of texts in field {column}", f"{where}; it has {', '.join(map(str, row))}")
    return tuple(value)


def damaged(what: str, where: str) -> SokaError:
    return SokaError(
        f"A row {what}.",
        where=where,
        hint="give the file in the benchmark's own form: mbpp has text (or prompt), code, task_id, test_list; humaneval has task_id, "
        "prompt, entry_point, canonical_solution, test",
        exit_code=ExitCode.DATA,
    )
