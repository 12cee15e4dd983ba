"""Who answers a benchmark's prompts, as evaluation sees it: questions in, completions out as they finish."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

StopReason = Literal["eos", "stop", "length", "context"]
Key = tuple[str, int]  # item id and number of the sample


@dataclass(frozen=True)
class Decoding:
    """How a completion is written.

    Attributes:
        stops: strings that end it and are cut off with all that follows.
        max_new_tokens: the longest one.
        temperature: by which logits are divided before tokens are drawn; 0 takes the likeliest.
        top_p: share of the probability, counted from the likeliest token on, that tokens are drawn from.
    """

    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Question:
    """One completion that is wanted: of which item, after which words.

    Attributes:
        sample: which of the item's completions, from 0.
        seed: what its tokens are drawn by, below 2**32; of no account where the likeliest are taken.
    """

    id: str
    sample: int
    prompt: str
    seed: int = 0

    @property
    def key(self) -> Key:
        return self.id, self.sample


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    `stop_reason`: eos (it ended by itself), stop (a stop string, cut off), length (max_new_tokens), context (the model's context was
    full, at once if the prompt alone fills it). `tokens` are those written, the end included. `smallest_gap` is the least lead, in
    logits, of the chosen token over the next best: near 0, rounding decides what is written. None where nobody knows it.
    """

    text: str
    stop_reason: StopReason
    tokens: int
    smallest_gap: float | None


Answers = list[tuple[Question, Completion]]


class Answerer(Protocol):
    """A model that answers under one Decoding, wherever it runs."""

    @property
    def seconds(self) -> float:
        """Time spent answering so far."""

    def limits(self, questions: Sequence[Question]) -> Iterator[str]:
        """Sentences for the user on prompts that leave less room than they are given."""

    def answer(self, questions: Sequence[Question], done: Sequence[Key]) -> Iterator[Answers]:
        """The completions of all questions but those that are done, in any order; what comes together is recorded together.

        The iterator may be left before its end. A completion depends on its question alone, not on its company.

        Args:
            done: keys that have their answers, in the order in which they came.
        """
