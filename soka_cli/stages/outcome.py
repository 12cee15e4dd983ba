"""What a stage hands back: figures for programs, tables for people."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from soka_cli.errors import ExitCode

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows for a person; numbers stay numbers so that the renderer can align and round them.

    The first column names the rows of a table with `stack_below`: on a terminal of fewer columns the others are shown one below another.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    stack_below: int | None = None


@dataclass(frozen=True)
class Sample:
    """A row as the model sees it: `parts` are its text in runs, each with whether the model learns to write it.

    `figures` are the same for programs, with token ids.
    """

    title: str
    parts: tuple[tuple[str, bool], ...]
    figures: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The end of one stage.

    `figures` is what `--json` prints: plain JSON values, no NaN. `text` is meant for a file or a pipe and printed as it is, `notes` are
    sentences, `next_commands` what to type next. `exit_code` is the process's, 0 unless the stage's own results call for another.
    """

    stage: str
    status: Literal["done", "already done", "partial"]
    run: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()
    text: str = ""
    exit_code: ExitCode = ExitCode.DONE
    samples: tuple[Sample, ...] = ()
