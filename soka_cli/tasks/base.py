"""What a benchmark is: rows in, prompts and judgements out. Knows no model and no tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from soka_cli.errors import ExitCode, SokaError


@dataclass(frozen=True)
class Example:
    """One row of a benchmark.

    `prompt` is the bare question and `target` the bare answer, which a template wraps; `plain` is the pair as the benchmark's
    own format has it, for template plain (None: prompt and target as they are). `gold` is the answer that is compared.
    """

    id: str
    prompt: str
    target: str
    gold: str
    plain: tuple[str, str] | None = None


@dataclass(frozen=True)
class Judgement:
    """What was read out of a completion (None: nothing), and each metric's verdict."""

    extracted: str | None
    correct: dict[str, bool]


class Task(Protocol):
    """One benchmark."""

    @property
    def name(self) -> str:
        """As recipes spell it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The keys of every judgement's `correct`, the headline one first."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that a row must have."""

    @property
    def specimen(self) -> Example:
        """An example whose words are the fields' names in braces: what a template's digest is taken from."""

    def example(self, row: dict[str, Any], index: int) -> Example:
        """The row's question and answer; `index` (0-based) names it where the row has no id. SokaError exit 4 for a damaged row."""

    def judge(self, completion: str, gold: str, stops: Sequence[str]) -> Judgement:
        """Compare a completion with the gold answer; `stops` end the part that a tolerant metric reads."""


def task_named(name: str) -> Task:
    """The benchmark called `name`; SokaError exit 2 listing those that are there."""
    from soka_cli.tasks.gsm8k import Gsm8k

    tasks: dict[str, Task] = {task.name: task for task in (Gsm8k(),)}
    if name not in tasks:
        raise SokaError(
            f"Task {name} is not there yet: its prompts, answer extraction and equality are missing.",
            where=f"task: {name}",
            why=f"this version judges {', '.join(tasks)}",
            hint=f"use task {' or '.join(tasks)}, or take the entry out of the recipe's eval list",
            exit_code=ExitCode.USAGE,
        )
    return tasks[name]


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the earliest stop string, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
