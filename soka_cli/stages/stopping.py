"""When a row of a batch has said enough, and how sure it was on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from soka_cli.tasks.base import cut_at

Ids = list[int]


class Wording:
    """Generated ids as text. Special tokens are left out unless they spell a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        self.unspoken = {index for index in tokenizer.all_special_ids if tokenizer.convert_ids_to_tokens(index) not in stops}

    def __call__(self, ids: Ids) -> str:
        spoken = [index for index in ids if index not in self.unspoken]
        return str(self.tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def cut(self, ids: Ids) -> tuple[str, bool]:
        """The text before the earliest stop string, and whether there was one."""
        return cut_at(self(ids), self.stops)


class RowIsDone(StoppingCriteria):
    """Ends a row at its stop string or when its room is used up; generation ends when all rows have ended.

    Each step decodes the newest tokens alone, as many as the longest stop string has bytes; a find is confirmed on the whole row.

    Args:
        wording: how ids read.
        start: the padded prompts' length.
        rooms: for each row, the most tokens it may write.

    Attributes:
        lengths: for each row, the tokens after which it ended; None while it goes on (or ended by EOS).
    """

    def __init__(self, wording: Wording, start: int, rooms: Sequence[int]) -> None:
        self.wording = wording
        self.start = start
        self.rooms = rooms
        self.lengths: list[int | None] = [None] * len(rooms)
        self.window = max((len(stop.encode()) for stop in wording.stops), default=0)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`input_ids` [B, start + written] -> [B] bool."""
        written = input_ids.shape[1] - self.start
        tails = input_ids[:, self.start :][:, -self.window :].tolist() if self.window else [[] for _ in self.rooms]
        for row, (tail, room) in enumerate(zip(tails, self.rooms, strict=True)):
            if self.lengths[row] is None and (written >= room or self._stopped(tail, input_ids[row])):
                self.lengths[row] = written
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)

    def _stopped(self, tail: Ids, row: Tensor) -> bool:
        return bool(tail) and self.wording.cut(tail)[1] and self.wording.cut(row[self.start :].tolist())[1]


class GapRecorder(LogitsProcessor):
    """Notes by how much the best token led the second best at each step; changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(2, dim=-1).values  # (B, 2)
        self.steps.append(best[:, 0] - best[:, 1])
        return scores

    def gaps(self) -> list[list[float]]:
        """For each row, the lead at each step, in logits."""
        return torch.stack(self.steps, dim=1).float().tolist() if self.steps else []
