"""The questions of an exam that have no answer yet: asked, judged and kept as the answers come."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from soka_cli.run.lines import AppendFile
from soka_cli.run.reporter import ProgressTask
from soka_cli.stages.answerer import Answerer, Answers, Completion, Question
from soka_cli.stages.context import StageContext
from soka_cli.stages.exam import Exam, text_digest
from soka_cli.stages.judged_model import JudgedModel
from soka_cli.stages.launch import Worker
from soka_cli.stages.scores import Prediction, judged_all
from soka_cli.stages.shares import Part, Parts, key_of, share_of

TAKEN_FOR_DEAD = 1800.0  # seconds without a new row from the other processes, after which the first one does their work
POLL = 0.2  # seconds between looks at what the others have done


class Answerers(Protocol):
    """Where a command's answers come from."""

    @property
    def where(self) -> str:
        """The device, for the stage's record."""

    @property
    def settings(self) -> dict[str, Any]:
        """What `decoding` of scores.json says beside the protocol's, as plain JSON values; known before anything is asked."""

    def answerer(self, exam: Exam, model: JudgedModel) -> Answerer:
        """The one that answers `exam` as `model`; it may take the place of the one before."""


class Asking:
    """What is missing of an evaluation, for one process among those that share it.

    Args:
        rows: what is answered already.
        parts: where the processes leave their rows.

    Attributes:
        asked, tokens: answers of this session that this process knows of, and what they took.
    """

    def __init__(
        self, context: StageContext, exam: Exam, answerer: Answerer, rows: Sequence[Prediction], parts: Parts, worker: Worker
    ) -> None:
        self.context, self.exam, self.answerer, self.parts, self.worker = context, exam, answerer, parts, worker
        self.questions = exam.questions
        self.examples = {example.id: example for example in exam.examples}
        self.rows = list(rows)
        self.asked, self.tokens = 0, 0
        self._present = set(map(key_of, rows))
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the answers took: alone without judging them, of several processes until the last was done."""
        return self.answerer.seconds if self.worker.count == 1 else time.monotonic() - self._start

    def help(self) -> None:
        """Another process's share."""
        with AppendFile(self.parts.path(self.worker)) as file:
            for answers in self._answers(share_of(self.questions, self.worker)):
                file.extend(self._judged(answers))

    def lead(self, file: AppendFile, title: str) -> None:
        """The first process's share, recorded in `file`; ends when the others have done theirs."""
        for sentence in self.answerer.limits(self.questions):
            self.context.reporter.warn(f"{title}: {sentence}")
        others = self.parts.others(self.worker)
        with self.context.reporter.task(title, total=len(self.questions), unit="items") as progress:
            progress.already(len(self.rows), **self._figures())
            self._record(self._answers(share_of(self.questions, self.worker)), file, others, progress)
            moved = time.monotonic()
            while len(self.rows) < len(self.questions):
                if self._count(others, progress):
                    moved = time.monotonic()
                elif time.monotonic() - moved > TAKEN_FOR_DEAD:
                    self.context.reporter.warn(f"no process answered for {TAKEN_FOR_DEAD:.0f} s: the first one does the others' work")
                    self._record(self._answers(self.questions), file, others, progress)
                else:
                    time.sleep(POLL)

    def _answers(self, questions: Sequence[Question]) -> Iterable[Answers]:
        keys = {question.key for question in questions}
        return self.answerer.answer(questions, [key for row in self.rows if (key := key_of(row)) in keys])

    def _record(self, answered: Iterable[Answers], file: AppendFile, others: Sequence[Part], progress: ProgressTask) -> None:
        for answers in answered:
            rows = self._judged(answers)
            file.extend(rows)
            self._add(rows, progress)
            self._count(others, progress)

    def _count(self, others: Sequence[Part], progress: ProgressTask) -> bool:
        """Look at the others' files; whether there is something new."""
        rows = [row for part in others for row in part.new_rows()]
        return bool(rows) and self._add(rows, progress)

    def _add(self, rows: Sequence[Prediction], progress: ProgressTask) -> bool:
        new = [row for row in rows if key_of(row) not in self._present]
        self._present.update(map(key_of, new))
        self.rows += new
        self.asked += len(new)
        self.tokens += sum(row["tokens"] for row in new)
        progress.advance(len(new), **self._figures())
        return bool(new)

    def _judged(self, answers: Answers) -> list[Prediction]:
        exam, unsafe = self.exam, self.context.unsafe_execution
        texts = [(completion.text, self.examples[question.id]) for question, completion in answers]
        ends = judged_all(exam.task, texts, exam.protocol.stops, exam.protocol.readings, exam.protocol.postprocessing, unsafe=unsafe)
        return [prediction(*answer, end) for answer, end in zip(answers, ends, strict=True)]

    def _figures(self) -> dict[str, float | str]:
        """Running accuracy and speed, for the progress line."""
        rows, metrics = self.rows, self.exam.judged
        shares: dict[str, float | str] = {metric: sum(row["correct"][metric] for row in rows) / len(rows) for metric in metrics if rows}
        return shares | ({"tokens_per_s": self.tokens / self.seconds} if self.tokens and self.seconds else {})


def prediction(question: Question, completion: Completion, end: dict[str, Any]) -> Prediction:
    """A row of predictions.jsonl."""
    return {
        "id": question.id,
        "sample": question.sample,
        "prompt_sha256": text_digest(question.prompt),
        "completion": completion.text,
        "stop_reason": completion.stop_reason,
        **end,
        "tokens": completion.tokens,
        "smallest_gap": completion.smallest_gap,
    }
