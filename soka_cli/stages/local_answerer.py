"""Answers from a model in this process."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from soka_cli.data.encode import encode_prompt
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import Batching
from soka_cli.run.reporter import Reporter
from soka_cli.stages.agreement import NEAR_TIE
from soka_cli.stages.answerer import Answerer, Answers, Completion, Decoding, Key, Question
from soka_cli.stages.completions import Completer
from soka_cli.stages.context import StageContext
from soka_cli.stages.continuous import ContinuousCompleter, refusal
from soka_cli.stages.exam import Exam
from soka_cli.stages.judged_model import JudgedModel, ModelShelf
from soka_cli.stages.stopping import Ids


class LocalAnswerers:
    """The answerers of one command: models of this machine, loaded one after another."""

    def __init__(self, context: StageContext) -> None:
        self.reporter = context.reporter
        self.shelf = ModelShelf(context)
        self.settings = {"backend": "hf", "dtype": context.recipe.model.dtype}

    @property
    def where(self) -> str:
        """The device."""
        return self.shelf.device

    def answerer(self, exam: Exam, model: JudgedModel) -> Answerer:
        entry = exam.entry
        options: dict[str, Any] = {"batch_size": entry.batch_size, "batching": entry.batching, "reporter": self.reporter}
        return LocalAnswerer(*self.shelf.get(model), exam.decoding, **options)


class LocalAnswerer:
    """A running batch where the model can be asked so, else batches sorted by length.

    Args:
        batch_size: prompts that are answered together, at most.
        batching: auto, continuous or padded.
    """

    def __init__(
        self, model: Any, tokenizer: Any, decoding: Decoding, *, batch_size: int, batching: Batching = "auto", reporter: Reporter
    ) -> None:
        self.tokenizer = tokenizer
        self.batch_size, self.batching, self.reporter = batch_size, batching, reporter
        self.completer = Completer(model, tokenizer, **vars(decoding), said=reporter.warn)
        self.seconds = 0.0

    def limits(self, questions: Sequence[Question]) -> Iterator[str]:
        completer = self.completer
        rooms = [completer.room(ids) for ids in self._encoded(questions)]
        if short := [room for room in rooms if 0 < room < completer.max_new_tokens]:
            yield (
                f"the context of {completer.limit} tokens leaves {len(short)} of {len(rooms)} prompts less room than "
                f"max_new_tokens = {completer.max_new_tokens}; the least is {min(short)}."
            )
        if full := rooms.count(0):
            yield (
                f"{full} prompts fill the context of {completer.limit} tokens by themselves; they are recorded with "
                "an empty answer and stop_reason context."
            )

    def answer(self, questions: Sequence[Question], done: Sequence[Key]) -> Iterator[Answers]:
        """As in Answerer.

        Raises:
            SokaError: exit 3 for a model that can't be asked in the way that the recipe insists on.
        """
        encoded = self._encoded(questions)
        if self._continuous(encoded):
            return self._running(questions, encoded, done)
        return self._padded(questions, encoded, done)

    def _continuous(self, encoded: Sequence[Ids]) -> bool:
        if self.batching == "padded":
            return False
        why = refusal(self.completer.model, self.tokenizer, encoded)
        if why and self.batching == "continuous":
            raise SokaError(
                "The model can't be asked in a running batch.",
                where="batching: continuous",
                why=why,
                hint="write batching: auto, which takes padded batches for such a model",
                exit_code=ExitCode.ENVIRONMENT,
            )
        if why:
            self.reporter.say(f"Padded batches: the model can't be asked in a running batch ({why}).")
        return not why

    def _running(self, questions: Sequence[Question], encoded: Sequence[Ids], done: Sequence[Key]) -> Iterator[Answers]:
        """What is missing, in one running batch. Its time goes on while the caller has an answer in hand: so do the others."""
        present = set(done)
        missing = [place for place, question in enumerate(questions) if question.key not in present]
        seeds = [questions[place].seed for place in missing]
        start = time.monotonic()
        for ended in ContinuousCompleter(self.completer, self.batch_size).complete([encoded[place] for place in missing], seeds):
            self.seconds = time.monotonic() - start
            yield [(questions[missing[place]], steady(completion)) for place, completion in ended]

    def _padded(self, questions: Sequence[Question], encoded: Sequence[Ids], done: Sequence[Key]) -> Iterator[Answers]:
        """Batch by batch; one of which a part is done is answered again whole, so that its company is what it was."""
        present = set(done)
        for batch in self._plan(questions, encoded, done):
            if all(questions[place].key in present for place in batch):
                continue
            start = time.monotonic()
            completions = self.completer.complete([encoded[place] for place in batch], [questions[place].seed for place in batch])
            self.seconds += time.monotonic() - start
            answered = [(questions[place], completion) for place, completion in zip(batch, completions, strict=True)]
            yield [(question, completion) for question, completion in answered if question.key not in present]

    def _plan(self, questions: Sequence[Question], encoded: Sequence[Ids], done: Sequence[Key]) -> list[list[int]]:
        """Batches of places. Where what is done follows their order they are those of an undisturbed run; else those of what is missing."""
        plan = list(self.completer.batches(encoded, self.batch_size))
        if list(done) == [questions[place].key for batch in plan for place in batch][: len(done)]:
            return plan
        present = set(done)
        absent = [place for place, question in enumerate(questions) if question.key not in present]
        return [[absent[place] for place in batch] for batch in self.completer.batches([encoded[one] for one in absent], self.batch_size)]

    def _encoded(self, questions: Sequence[Question]) -> list[Ids]:
        ids = {prompt: encode_prompt(self.tokenizer, prompt) for prompt in dict.fromkeys(question.prompt for question in questions)}
        return [ids[question.prompt] for question in questions]


def steady(completion: Completion) -> Completion:
    """The completion of a running batch with its lead rounded down to a multiple of NEAR_TIE.

    Company moves the last digits of a lead, and whoever goes on after an interruption has other company.
    """
    if completion.smallest_gap is None:
        return completion
    return replace(completion, smallest_gap=round(int(completion.smallest_gap / NEAR_TIE) * NEAR_TIE, 2))
