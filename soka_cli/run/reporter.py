"""How a stage tells a person what it is doing, without printing: the command line hands it an implementation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ContextManager, Protocol


class ProgressTask(Protocol):
    """One countable piece of work under way."""

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        """Move on by `amount` units; `figures` are shown beside the bar (loss=0.41, tokens_per_s=1200)."""

    def already(self, amount: float, **figures: float | str) -> None:
        """Units that were done before this task began: they count as done, and tell nothing of its speed."""

    def estimate(self, seconds: float) -> None:
        """The caller's own estimate of the time left, where units differ too much in size to go by their number."""


class Reporter(Protocol):
    """Where a stage's words go. All of it is for people and goes to stderr; results travel in the stage's Outcome."""

    def say(self, message: str) -> None:
        """One line of information."""

    def warn(self, message: str) -> None:
        """One line that asks for attention."""

    def task(self, title: str, total: float | None = None, unit: str = "") -> ContextManager[ProgressTask]:
        """A bar (or plain lines when piped) for work of `total` units; None where the total is unknown."""


class SilentTask:
    def advance(self, amount: float = 1, **figures: float | str) -> None:
        """Nothing is shown."""

    def already(self, amount: float, **figures: float | str) -> None:
        """Nothing is shown."""

    def estimate(self, seconds: float) -> None:
        """Nothing is shown."""


class SilentReporter:
    """A Reporter for programs and tests: says nothing, remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[SilentTask]:
        self.messages.append(title)
        yield SilentTask()
