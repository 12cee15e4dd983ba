"""The questions of an exam that have no answer yet: asked, judged and kept as the answers come."""

from typing import Any, Protocol

from soka_cli.run.lines import AppendFile
from soka_cli.stages.answerer import Answerer, Answers, Completion, Key, Question
from soka_cli.stages.context import StageContext
from soka_cli.stages.exam import Exam, text_digest
from soka_cli.stages.judged_model import JudgedModel
from soka_cli.stages.scores import Prediction, judged_all


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
    """The generation of what is missing in a predictions file."""

    def __init__(self, context: StageContext, exam: Exam, answerer: Answerer, file: AppendFile) -> None:
        self.exam, self.answerer, self.file, self.reporter = exam, answerer, file, context.reporter
        self.unsafe = context.unsafe_execution
        self.examples = {example.id: example for example in exam.examples}
        self.tokens = 0
        self.asked = 0

    def run(self, title: str) -> None:
        """Record answers as they come; one that a kill lost is asked for again."""
        questions, done = self.exam.questions, [key_of(row) for row in self.file.rows]
        for sentence in self.answerer.limits(questions):
            self.reporter.warn(f"{title}: {sentence}")
        with self.reporter.task(title, total=len(questions), unit="items") as progress:
            progress.advance(len(done), **self._figures())
            for answers in self.answerer.answer(questions, done):
                self.file.extend(self._judged(answers))
                self.tokens += sum(completion.tokens for _, completion in answers)
                self.asked += len(answers)
                progress.advance(len(answers), **self._figures())

    @property
    def seconds(self) -> float:
        """Time that the answers took, without judging them."""
        return self.answerer.seconds

    def _judged(self, answers: Answers) -> list[Prediction]:
        exam = self.exam
        texts = [(completion.text, self.examples[question.id]) for question, completion in answers]
        ends = judged_all(exam.task, texts, exam.protocol.stops, exam.protocol.readings, exam.protocol.postprocessing, unsafe=self.unsafe)
        return [prediction(*answer, end) for answer, end in zip(answers, ends, strict=True)]

    def _figures(self) -> dict[str, float | str]:
        """Running accuracy and speed, for the progress line."""
        rows, metrics = self.file.rows, self.exam.metrics
        shares: dict[str, float | str] = {metric: sum(row["correct"][metric] for row in rows) / len(rows) for metric in metrics if rows}
        return shares | ({"tokens_per_s": self.tokens / self.seconds} if self.seconds else {})


def key_of(row: Prediction) -> Key:
    return row["id"], row["sample"]


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
