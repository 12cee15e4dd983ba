"""Answers from a model in this process."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from soka_cli.data.encode import encode_prompt
from soka_cli.run.reporter import Reporter
from soka_cli.stages.answerer import Answerer, Answers, Decoding, Key, Question
from soka_cli.stages.completions import Completer
from soka_cli.stages.context import StageContext
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
        return LocalAnswerer(*self.shelf.get(model), exam.decoding, batch_size=exam.entry.batch_size, reporter=self.reporter)


class LocalAnswerer:
    """Batches sorted by length.

    Args:
        batch_size: prompts answered together, at most.
    """

    def __init__(self, model: Any, tokenizer: Any, decoding: Decoding, *, batch_size: int, reporter: Reporter) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.completer = Completer(model, tokenizer, stops=decoding.stops, max_new_tokens=decoding.max_new_tokens, said=reporter.warn)
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
        """As in Answerer; a batch of which a part is done is answered again whole, so that its company is what it was."""
        encoded = self._encoded(questions)
        present = set(done)
        for batch in self._plan(questions, encoded, done):
            if all(questions[place].key in present for place in batch):
                continue
            start = time.monotonic()
            completions = self.completer.complete([encoded[place] for place in batch])
            self.seconds += time.monotonic() - start
            answered = [(questions[place], completion) for place, completion in zip(batch, completions, strict=True)]
            yield [(question, completion) for question, completion in answered if question.key not in present]

    def _plan(self, questions: Sequence[Question], encoded: Sequence[Ids], done: Sequence[Key]) -> list[list[int]]:
        """Batches of places. Where what is done follows their order they are those of an undisturbed run; else those of what is missing."""
        plan = list(self.completer.batches(encoded, self.batch_size))
        if list(done) == [questions[place].key for batch in plan for place in batch][: len(done)]:
            return plan
        absent = [place for place, question in enumerate(questions) if question.key not in set(done)]
        return [[absent[place] for place in batch] for batch in self.completer.batches([encoded[one] for one in absent], self.batch_size)]

    def _encoded(self, questions: Sequence[Question]) -> list[Ids]:
        return [encode_prompt(self.tokenizer, question.prompt) for question in questions]
