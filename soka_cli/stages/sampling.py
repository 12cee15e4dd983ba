"""The choice of the next token: the likeliest, or one drawn so that a sample depends on its own seed alone."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


def lead(scores: Tensor) -> Tensor:
    """By how much the best token leads the second best. `scores` [rows, vocabulary] -> [rows], in logits."""
    best = scores.topk(2, dim=-1).values  # (rows, 2)
    return best[:, 0] - best[:, 1]


def uniform(seed: int, step: int) -> float:
    """A number from [0, 1) that stands for step `step` of the sample with this seed, on every machine."""
    return int.from_bytes(sha256(f"{seed} {step}".encode()).digest()[:6], "big") / 2**48


class Chooser:
    """Draws tokens from the softmax of the logits over `temperature`, among the likeliest whose shares add up to `top_p`.

    A draw is the place in the vocabulary where the cumulated shares pass a number that seed and step give. No random state is kept,
    so neither the company in a batch nor an interruption changes a sample.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        warpers: list[Any] = [TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
        self.warpers = LogitsProcessorList([*warpers, *([TopPLogitsWarper(top_p)] if top_p < 1.0 else [])])

    def __call__(self, scores: Tensor, seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
        """`scores` [rows, vocabulary] with all but each row's drawn token at -inf; rows have written `steps` tokens so far."""
        shares = self.warpers(None, scores.float()).softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        draws = torch.tensor([uniform(*pair) for pair in zip(seeds, steps, strict=True)], dtype=torch.float64, device=scores.device)
        draws = draws[:, None] * shares[:, -1:]  # (rows, 1)
        drawn = torch.searchsorted(shares, draws, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class PaddedChoice(LogitsProcessor):
    """The choices of a padded batch: notes each step's leads, and draws where rows have seeds.

    Args:
        chooser: None takes the likeliest.
        seeds: one a row.
        start: the padded prompts' length.
    """

    def __init__(self, chooser: Chooser | None, seeds: Sequence[int], start: int) -> None:
        self.chooser, self.seeds, self.start = chooser, seeds, start
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores` [rows, vocabulary], where they are drawn from with all but the drawn token at -inf."""
        self.steps.append(lead(scores))
        if self.chooser is None:
            return scores
        return self.chooser(scores, self.seeds, [input_ids.shape[1] - self.start] * len(self.seeds))

    def gaps(self) -> list[list[float]]:
        """For each row, the lead at each step, in logits."""
        return torch.stack(self.steps, dim=1).float().tolist() if self.steps else []
