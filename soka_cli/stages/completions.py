"""Completions of many prompts: sorted batches, left padding, exact stops, the model's context respected."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig

from soka_cli.models.offload import computing_device
from soka_cli.stages.answerer import Completion, StopReason
from soka_cli.stages.sampling import Chooser, PaddedChoice
from soka_cli.stages.stopping import Ids, RowIsDone, Wording


def context_limit(model: Any) -> int | None:
    """Tokens that the model has positions for, prompt and answer together; None where its config names no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's EOS and those of the model's generation settings."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    known = named if isinstance(named, list) else [named]
    return sorted({int(index) for index in (tokenizer.eos_token_id, *known) if index is not None})


class Completer:
    """Answers prompts. Takes the model's generation settings over, since transformers reads what it is not told from there.

    Args:
        model: a causal language model on its device.
        tokenizer: with an EOS and a pad token (which may be the same).
        stops: strings that end an answer and are cut off with all that follows.
        max_new_tokens: the longest answer.
        temperature, top_p: what tokens are drawn from, by each prompt's seed; 0 takes the likeliest.
        said: told when memory runs out and a batch is halved.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        stops: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model = model
        self.limit = context_limit(model)
        self.max_new_tokens = max_new_tokens
        self.wording = Wording(tokenizer, stops)
        self.chooser = Chooser(temperature, top_p) if temperature else None
        self.ends = end_ids(model, tokenizer)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self.said = said
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, use_cache=True, eos_token_id=self.ends, pad_token_id=self.pad
        )

    def room(self, prompt: Ids) -> int:
        """Tokens that may follow a prompt; 0 where it fills the context alone."""
        if not prompt:
            return 0
        return self.max_new_tokens if self.limit is None else max(0, min(self.max_new_tokens, self.limit - len(prompt)))

    def batches(self, prompts: Sequence[Ids], size: int) -> Iterator[list[int]]:
        """Places in `prompts`, longest first, `size` together. Depends on the prompts alone, so a resumed run makes the same batches."""
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        groups = [order] if self._rooms_mix() else [list(group) for _, group in groupby(order, key=lambda place: self.room(prompts[place]))]
        for group in groups:
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _rooms_mix(self) -> bool:
        """Whether a finished row may run on past the context while others write: rotary positions have no table that ends."""
        positions = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        return self.limit is None or positions.get("rope_type") == "default"

    def complete(self, prompts: Sequence[Ids], seeds: Sequence[int] = ()) -> list[Completion]:
        """The completions of one batch, in its order; a batch that does not fit into the device's memory is halved.

        Args:
            seeds: one a prompt, where tokens are drawn.
        """
        seeds = seeds or [0] * len(prompts)
        fitting = [place for place, prompt in enumerate(prompts) if self.room(prompt)]
        answers = dict(zip(fitting, self._halving([(prompts[place], seeds[place]) for place in fitting]), strict=True))
        return [answers.get(place, self.unasked()) for place in range(len(prompts))]

    def unasked(self) -> Completion:
        """What a prompt without room gets."""
        return Completion("", "context", 0, None)

    def _halving(self, prompts: list[tuple[Ids, int]]) -> list[Completion]:
        if not prompts:
            return []
        try:
            return self._generate([ids for ids, _ in prompts], [seed for _, seed in prompts])
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        torch.cuda.empty_cache()
        half = math.ceil(len(prompts) / 2)
        self.said(f"A batch of {len(prompts)} prompts does not fit into memory; going on with {half}.")
        return self._halving(prompts[:half]) + self._halving(prompts[half:])

    def _generate(self, prompts: list[Ids], seeds: list[int]) -> list[Completion]:
        width = max(map(len, prompts))
        device = computing_device(self.model)
        input_ids = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)  # (B, width)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        rooms = [self.room(prompt) for prompt in prompts]
        done, choice = RowIsDone(self.wording, width, rooms), PaddedChoice(self.chooser, seeds, width)
        with torch.inference_mode():
            written = self.model.generate(
                input_ids,
                attention_mask=mask,
                generation_config=GenerationConfig(max_new_tokens=max(rooms)),
                stopping_criteria=[done],
                logits_processor=[choice],
            )
        rows = written[:, width:].tolist()
        return [
            self.completion(ids[:length], room, gaps)
            for ids, length, room, gaps in zip(rows, done.lengths, rooms, choice.gaps(), strict=True)
        ]

    def completion(self, ids: Ids, room: int, gaps: Sequence[float]) -> Completion:
        """One prompt's own tokens (padding that follows an EOS included) and their leads as its completion."""
        end = next((place for place, index in enumerate(ids) if index in self.ends), None)
        text, stopped = self.wording.cut(ids[:end])
        count = len(ids) if end is None else end + 1
        full: StopReason = "length" if room == self.max_new_tokens else "context"
        reason: StopReason = "stop" if stopped else "eos" if end is not None else full
        gap = min(gaps[:count], default=math.inf)
        return Completion(text, reason, count, float(f"{gap:.4g}") if self.chooser is None and math.isfinite(gap) else None)
