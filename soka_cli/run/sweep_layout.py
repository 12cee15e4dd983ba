"""Where everything lies in a sweep directory."""

from dataclasses import dataclass
from pathlib import Path

from soka_cli.run.layout import RunLayout


@dataclass(frozen=True)
class SweepLayout:
    """Paths of one sweep directory; creates and reads nothing. Its runs are ordinary run directories inside it."""

    root: Path

    @property
    def record(self) -> Path:
        """What each run came to."""
        return self.root / "sweep.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def run(self, name: str) -> RunLayout:
        return RunLayout(self.root / name)

    def log(self, name: str) -> Path:
        """What the run's commands said."""
        return self.root / "logs" / f"{name}.log"

    def answer(self, name: str) -> Path:
        """The JSON objects that the run's commands ended with."""
        return self.root / "logs" / f"{name}.jsonl"
