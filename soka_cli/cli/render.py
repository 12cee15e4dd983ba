"""The only module that prints: outcomes to stdout, progress, warnings and errors to stderr."""

import json as json_library
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from soka_cli.errors import SokaError

if TYPE_CHECKING:
    from soka_cli.stages.outcome import Cell, Outcome, Sample, Table

PLAIN_SECONDS = 5.0  # between two progress lines where there is no terminal
PIPE_WIDTH = 160  # columns where there is no terminal to ask


class Renderer:
    """Shows one call's reporter, outcome and errors in the way that the user asked for."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self.err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)
        self.reporter = ConsoleReporter(self.err, quiet=quiet, verbose=verbose)

    def outcome(self, outcome: "Outcome") -> None:
        """The end of a stage: one JSON object, or tables and the next command."""
        if self.json:
            write_json(
                {"stage": outcome.stage, "status": outcome.status, "run": str(outcome.run) if outcome.run else None, **outcome.figures}
            )
            return
        for table in (part for whole in outcome.tables for part in fitting(whole, self.out.width)):
            self.out.print(rich_table(table))
        if outcome.text:
            print_text(outcome.text)
        for sample in outcome.samples:
            self.sample(sample)
        for note in outcome.notes:
            self.out.print(escape(note))
        where = f" in {outcome.run}" if outcome.run else ""
        if outcome.status == "already done":
            self.out.print(escape(f"{outcome.stage}: already done{where}, nothing to do"))
        if outcome.next_commands and not self.quiet:
            self.out.print("next: " + escape("\n      ".join(outcome.next_commands)))

    def sample(self, sample: "Sample") -> None:
        """A row's text; what is learnt is green, between [[ and ]] where there are no colours."""
        plain = self.out.color_system is None or self.out.no_color
        text = Text()
        for part, learnt in sample.parts:
            text.append(f"[[{part}]]" if plain and learnt else part, style="green" if learnt else "dim")
        self.out.print(escape(sample.title), style="bold")
        self.out.print(text, soft_wrap=True)
        self.out.print()

    def error(self, error: SokaError) -> None:
        """All parts of an error; for programs also as the one JSON object."""
        if self.json:
            write_json({"error": {**error.parts(), "exit_code": int(error.exit_code)}})
        labels = {"what": "[bold red]error[/]", "where": "[bold]where[/]", "why": "[bold]why[/]  ", "try": "[bold]try[/]  "}
        for name, text in error.parts().items():
            self.err.print(f"{labels[name]}  {escape(indent(text))}")


def indent(text: str) -> str:
    return text.replace("\n", "\n       ")


def write_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json_library.dumps(value, allow_nan=False, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Text that is meant to be piped on, as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def fitting(table: "Table", width: int) -> "Iterator[Table]":
    """The table as it is, or a table for each of its columns where a terminal of `width` columns is too narrow for all."""
    if table.stack_below is None or width >= table.stack_below or len(table.columns) <= 2:
        yield table
        return
    for index, column in enumerate(table.columns[1:], start=1):
        rows = tuple((row[0], row[index]) for row in table.rows)
        yield replace(table, columns=(table.columns[0], column), rows=rows)


def rich_table(table: "Table") -> RichTable:
    drawn = RichTable(title=escape(table.title), title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(table.columns):
        numeric = any(isinstance(row[index], int | float) for row in table.rows)
        drawn.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(cell_text(cell)) for cell in row))
    return drawn


def cell_text(cell: "Cell") -> str:
    """`1234567` -> `1,234,567`, `0.98500001` -> `0.985`, None -> `-`."""
    if cell is None:
        return "-"
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}"


class ConsoleReporter:
    """A Reporter for a person: a live bar on a terminal, plain lines when piped."""

    def __init__(self, console: Console, *, quiet: bool = False, verbose: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.verbose = verbose

    def say(self, message: str) -> None:
        if not self.quiet:
            self.console.print(escape(message))

    def warn(self, message: str) -> None:
        self.console.print(f"[yellow]warning[/]: {escape(message)}")

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator["BarTask | PlainTask"]:
        if self.quiet or not self.console.is_terminal:
            plain = PlainTask(self, title, total, unit)
            yield plain
            plain.end()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn(escape(unit)),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            LeftColumn(),
            TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),  # gives way
        )
        with Progress(*columns, console=self.console, transient=False, expand=True) as progress:
            yield BarTask(progress, title, total)


def figures_text(figures: dict[str, float | str]) -> str:
    return " ".join(f"{name}={value if isinstance(value, str) else format(value, '.4g')}" for name, value in figures.items())


class LeftColumn(TimeRemainingColumn):
    """Time left: the stage's own estimate where it gives one, else by the number of units done."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return super().render(task) if left is None else Text(f"{timedelta(seconds=round(left))}", style="progress.remaining")


class BarTask:
    """A live bar."""

    def __init__(self, progress: Progress, title: str, total: float | None) -> None:
        self.progress = progress
        self.task = progress.add_task(escape(title), total=total, figures="", left=None)

    def estimate(self, seconds: float) -> None:
        self.progress.update(self.task, left=seconds)

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        self.progress.update(self.task, advance=amount)
        if figures:
            self.progress.update(self.task, figures=escape(figures_text(figures)))

    def already(self, amount: float, **figures: float | str) -> None:
        self.advance(amount, **figures)  # of a bar's first move its speed takes the time alone


class PlainTask:
    """A line now and then, for logs and pipes."""

    def __init__(self, reporter: ConsoleReporter, title: str, total: float | None, unit: str) -> None:
        self.reporter = reporter
        self.title = title
        self.total = total
        self.unit = unit
        self.count = self.before = 0.0
        self.figures: dict[str, float | str] = {}
        self.left: float | None = None
        self.started = self.shown = time.monotonic()
        self.shown_count = -1.0

    def estimate(self, seconds: float) -> None:
        self.left = seconds

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        self.count += amount
        self.figures = figures or self.figures
        if time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.show()

    def already(self, amount: float, **figures: float | str) -> None:
        self.count, self.before = self.count + amount, self.before + amount
        self.figures = figures or self.figures

    def show(self) -> None:
        self.shown, self.shown_count = time.monotonic(), self.count
        elapsed, done = self.shown - self.started, self.count - self.before
        seconds = elapsed / done * (self.total - self.count) if self.total and done else None
        seconds = seconds if self.left is None else self.left
        left = "" if seconds is None else f", {seconds:.0f} s left"
        of = f"/{self.total:g}" if self.total else ""
        self.reporter.say(f"{self.title}: {self.count:g}{of} {self.unit}, {elapsed:.0f} s{left} {figures_text(self.figures)}".rstrip())

    def end(self) -> None:
        if time.monotonic() - self.started >= 1.0 and self.count != self.shown_count:
            self.show()
