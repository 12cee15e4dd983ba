"""One evaluation among several processes: whose question is whose, and the rows that each leaves for the first."""

from collections.abc import Sequence
from pathlib import Path

from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import AppendFile, from_line, read_lines
from soka_cli.run.write import remove
from soka_cli.stages.answerer import Key, Question
from soka_cli.stages.launch import Worker
from soka_cli.stages.scores import Prediction


def key_of(row: Prediction) -> Key:
    return row["id"], row["sample"]


def share_of(questions: Sequence[Question], worker: Worker) -> list[Question]:
    """This process's questions: every so many-th by the prompts' length, the longest first; the same division in every process."""
    return sorted(questions, key=lambda question: -len(question.prompt))[worker.rank :: worker.count]


class Part:
    """A growing file of rows that another process writes, read as far as it has come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read, self._lines = 0, 0

    def new_rows(self) -> list[Prediction]:
        """The finished rows since the last call; none where there is no file yet."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                finished, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        if not newline:
            return []
        lines = finished.split(b"\n")
        rows = [from_line(line, self.path, number) for number, line in enumerate(lines, start=self._lines + 1)]
        self._read, self._lines = self._read + len(finished) + 1, self._lines + len(lines)
        return rows


class Parts:
    """The processes' files of one evaluation."""

    def __init__(self, layout: RunLayout, name: str, kind: str) -> None:
        self.layout, self.name, self.kind = layout, name, kind

    def path(self, worker: Worker) -> Path:
        """Where a process writes that is not the first, which has the evaluation's own file."""
        return self.layout.predictions_part(self.name, self.kind, worker.rank)

    def others(self, worker: Worker) -> list[Part]:
        """Those files, to the first process."""
        return [Part(self.layout.predictions_part(self.name, self.kind, rank)) for rank in range(1, worker.count)]

    def gather(self, file: AppendFile) -> None:
        """Add the rows of all parts, of this run or one that was stopped, to the evaluation's file, and remove the parts."""
        paths = sorted(self.layout.predictions_parts(self.name, self.kind))
        for path in paths:
            present = {key_of(row) for row in file.rows}
            file.extend(row for row in read_lines(path) if key_of(row) not in present)
        for path in paths:
            remove(path)
