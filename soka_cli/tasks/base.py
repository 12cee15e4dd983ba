"""What a benchmark is: rows in, prompts and judgements out. Knows no model and no tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from soka_cli.errors import ExitCode, SokaError


@dataclass(frozen=True)
class Example:
    """One row of a benchmark.

    `prompt` is the bare question and `target` the bare answer, which a template wraps; `problem` is the question in the row's own
    words where the prompt says more (None: the prompt); `plain` is the pair as the benchmark's own format has it, for template
    plain (None: prompt and target as they are). `gold` is the answer that is compared; `target`
    and `columns`, the row itself by the task's own names, are empty where only that is known. `groups` are kinds of items that are
    also counted apart, e.g. {"level": "Level 5"}.
    """

    id: str
    prompt: str
    target: str
    gold: str
    problem: str | None = None
    plain: tuple[str, str] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What was read out of a completion (None: nothing), each metric's verdict, and for people what a judge said beside it.

    `details` are further columns of the prediction's row.
    """

    extracted: str | None
    correct: dict[str, bool]
    why: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One benchmark."""

    @property
    def name(self) -> str:
        """As recipes spell it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The keys of every judgement's `correct`, the headline one first; a protocol may add some of `readings`."""

    @property
    def readings(self) -> tuple[str, ...]:
        """Further metrics, each the reading of one published script and named after it."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that a row must have."""

    @property
    def specimen(self) -> Example:
        """An example whose words are the columns' names in braces: what a template's digest is taken from."""

    def example(self, row: dict[str, Any], index: int) -> Example:
        """The row's question and answer; `index` (0-based) names it where the row has no id. SokaError exit 4 for a damaged row."""

    def judge(self, completion: str, example: Example, stops: Sequence[str], readings: Sequence[str] = ()) -> Judgement:
        """Compare a completion with the example's gold answer.

        Args:
            stops: strings that end the part which a tolerant metric reads.
            readings: those of the task's readings that are judged as well.
        """


GROUP_COLUMNS = {"subject": ("type", "subject"), "level": ("level",)}
"""Kind of group -> the columns that may name an item's; MATH's `type` is its subject."""


def groups_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The groups that a row names itself a member of."""
    named = {kind: next((row[column] for column in columns if column in row), None) for kind, columns in GROUP_COLUMNS.items()}
    return {kind: value for kind, value in named.items() if isinstance(value, str)}


ADDED: dict[str, Task] = {}
"""Those that a program of one's own brought along (`tasks/added.py`)."""


def task_named(name: str) -> Task:
    """The benchmark called `name`; SokaError exit 2 listing those that are there."""
    from soka_cli.tasks.competition_math import CompetitionMath
    from soka_cli.tasks.gsm8k import Gsm8k
    from soka_cli.tasks.humaneval import HumanEval
    from soka_cli.tasks.mbpp import Mbpp

    everything: tuple[Task, ...] = (Gsm8k(), CompetitionMath(), Mbpp(), HumanEval())
    tasks = {task.name: task for task in everything} | ADDED
    if name not in tasks:
        raise SokaError(
            f"There is no task {name}.",
            where=f"task: {name}",
            hint=f"use {' or '.join(tasks)}",
            exit_code=ExitCode.USAGE,
        )
    return tasks[name]


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the earliest stop string, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def text_column(row: Mapping[str, Any], column: str, index: int, form: str) -> str:
    """The text in a row's column; SokaError (exit 4) naming the row and what the benchmark's files look like."""
    value = row.get(column)
    if not isinstance(value, str):
        raise SokaError(
            f"Row {index} has no text in field {column}.",
            where=f"field {column} of row {index}; the row has {', '.join(map(str, row))}",
            hint=f"give a file in {form}",
            exit_code=ExitCode.DATA,
        )
    return value
