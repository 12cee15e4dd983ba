"""Answers from a model that an OpenAI-compatible server serves."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from soka_cli.data.encode import encode_prompt
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_tokenizer
from soka_cli.models.served import NoRoomError, ServedAnswer, ServedModel, Server
from soka_cli.stages.answerer import Answerer, Answers, Completion, Decoding, Key, Question, StopReason
from soka_cli.stages.as_they_come import as_they_come
from soka_cli.stages.context import StageContext
from soka_cli.stages.exam import Exam
from soka_cli.stages.judged_model import JudgedModel
from soka_cli.stages.server_choice import ServerChoice
from soka_cli.stages.stopping import Ids, Wording
from soka_cli.tasks.base import cut_at

PROBE = "Question: Zoë pays 12.50 for 3 pens.\nAnswer: 37.50"
Asked = tuple[Question, Ids]


class ServedAnswerers:
    """The answerers of one command: one model of one server.

    Raises:
        SokaError: exit 2 for an address that is none; exit 3 where nothing answers there, or serves no such model.
    """

    def __init__(self, context: StageContext, choice: ServerChoice) -> None:
        self.context = context
        self.server = Server(choice.url, said=context.reporter.warn)
        self.model = self.server.model(choice.model)
        self.settings = {
            "backend": "vllm",
            "dtype": None,  # the server's own
            "server": self.server.host,
            "served_model": self.model.name,
            "context": self.model.limit,
        }
        self._tokenizer: Any = None

    @property
    def where(self) -> str:
        """The server, for the stage's record."""
        return f"server {self.server.host}"

    def answerer(self, exam: Exam, model: JudgedModel) -> Answerer:
        return self.of(exam.decoding, at_once=exam.entry.batch_size)

    def of(self, decoding: Decoding, *, at_once: int) -> "ServedAnswerer":
        """Under any decoding. Exit 3 where the server's tokenizer is known to be another than the recipe's."""
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.context.recipe.model, offline=self.context.offline)
            self._require_same(tokenizer)
            self._tokenizer = tokenizer
        return ServedAnswerer(self.server, self.model, self._tokenizer, decoding, at_once=at_once)

    def _require_same(self, tokenizer: Any) -> None:
        """Ids of one tokenizer are noise to a model of another. vLLM tells its ids of a text; other servers are taken at their word."""
        theirs, ours = self.server.token_ids(self.model.name, PROBE), tokenizer(PROBE, add_special_tokens=False).input_ids
        if theirs is not None and theirs != ours:
            raise SokaError(
                f"The served model {self.model.name} has another tokenizer than the recipe's base.",
                where=f"{self.server.url}, model.name: {self.context.recipe.model.name}",
                why=f"{PROBE!r} is {len(theirs)} tokens there and {len(ours)} here, or other ones",
                hint="serve the model that was merged from this base, or name the served model's base: model.name=FOLDER",
                exit_code=ExitCode.ENVIRONMENT,
            )


class ServedAnswerer:
    """Sends prompts as token ids, so that the server adds no second BOS, and reads the token ids that come back.

    A server that returns none is read by its text. Either way the stop strings are sent, and cut here as for a local model.

    Args:
        tokenizer: the base's of the recipe; the served model must have the same.
        at_once: requests under way, at most.
    """

    def __init__(self, server: Server, model: ServedModel, tokenizer: Any, decoding: Decoding, *, at_once: int) -> None:
        self.server = server
        self.model = model
        self.tokenizer = tokenizer
        self.decoding = decoding
        self.at_once = at_once
        self.wording = Wording(tokenizer, decoding.stops)
        self.seconds = 0.0

    def limits(self, questions: Sequence[Question]) -> Iterator[str]:
        wanted = self.decoding.max_new_tokens
        rooms = [self.room(ids, self.model.limit) for _, ids in self._encoded(questions)]
        if short := [room for room in rooms if 0 < room < wanted]:
            yield (
                f"the server's context of {self.model.limit} tokens leaves {len(short)} of {len(rooms)} prompts less room than "
                f"max_new_tokens = {wanted}; the least is {min(short)}."
            )
        if full := rooms.count(0):
            yield (
                f"{full} prompts fill the server's context of {self.model.limit} tokens by themselves; they are recorded with "
                "an empty answer and stop_reason context."
            )

    def answer(self, questions: Sequence[Question], done: Sequence[Key]) -> Iterator[Answers]:
        present, before, start = set(done), self.seconds, time.monotonic()
        missing = self._encoded([question for question in questions if question.key not in present])
        for some in as_they_come(self._ask, missing, self.at_once):
            self.seconds = before + time.monotonic() - start
            yield [(question, self._completion(*answered)) for (question, _), answered in some]

    def room(self, prompt: Ids, limit: int | None) -> int:
        """Tokens that may follow a prompt; 0 where it fills the context alone."""
        wanted = self.decoding.max_new_tokens
        return 0 if not prompt else wanted if limit is None else max(0, min(wanted, limit - len(prompt)))

    def _encoded(self, questions: Sequence[Question]) -> list[Asked]:
        return [(question, encode_prompt(self.tokenizer, question.prompt)) for question in questions]

    def _ask(self, asked: Asked) -> tuple[ServedAnswer | None, int]:
        """The server's answer and the room it had; None where there is none. A limit told in a refusal is kept to, once."""
        question, ids = asked
        room = self.room(ids, self.model.limit)
        if not room:
            return None, 0
        try:
            return self._request(question, ids, room), room
        except NoRoomError as full:
            less = self.room(ids, full.limit) if full.limit is not None else 0
        if not 0 < less < room:
            return None, 0
        try:
            return self._request(question, ids, less), less
        except NoRoomError:
            return None, 0

    def _request(self, question: Question, ids: Ids, room: int) -> ServedAnswer:
        """Says all of the decoding: vLLM takes what it is not told from the model's own settings."""
        decoding = self.decoding
        drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "repetition_penalty": 1.0}
        seed = {"seed": question.seed, "top_k": -1, "min_p": 0.0} if decoding.temperature else {}
        ends = {"stop_token_ids": self._stop_tokens} if self._stop_tokens else {}
        return self.server.complete(self.model.name, ids, max_tokens=room, stops=decoding.stops, **drawn, **seed, **ends)

    @property
    def _stop_tokens(self) -> list[int]:
        """Special tokens that spell a stop string: in the server's text they would be left out."""
        return [index for index in self.tokenizer.all_special_ids if self.tokenizer.convert_ids_to_tokens(index) in self.decoding.stops]

    def _completion(self, answer: ServedAnswer | None, room: int) -> Completion:
        if answer is None:
            return Completion("", "context", 0, None)
        text, stopped = self._text(answer)
        full: StopReason = "length" if room == self.decoding.max_new_tokens else "context"
        named = isinstance(answer.stopped_by, str)
        reason: StopReason = "stop" if stopped or named else "eos" if answer.finish == "stop" else full
        return Completion(text, reason, answer.tokens, None)

    def _text(self, answer: ServedAnswer) -> tuple[str, bool]:
        """What was written before the earliest stop string, and whether there was one."""
        if answer.ids is None:
            return cut_at(answer.text, self.decoding.stops)
        ids = answer.ids
        end = next((place for place, index in enumerate(ids) if index == self.tokenizer.eos_token_id), None)
        return self.wording.cut(ids[:end])
