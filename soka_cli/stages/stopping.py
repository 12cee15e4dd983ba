"""When an answer has said enough."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from soka_cli.tasks.base import cut_at

Ids = list[int]


class Wording:
    """Generated ids as text. Special tokens are left out unless they spell a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        self.unspoken = {index for index in tokenizer.all_special_ids if tokenizer.convert_ids_to_tokens(index) not in stops}
        self.window = max((len(stop.encode()) for stop in stops), default=0)

    def __call__(self, ids: Ids) -> str:
        spoken = [index for index in ids if index not in self.unspoken]
        return str(self.tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def cut(self, ids: Ids) -> tuple[str, bool]:
        """The text before the earliest stop string, and whether there was one."""
        return cut_at(self(ids), self.stops)

    def stopped(self, ids: Ids) -> bool:
        """Whether the newest token completed a stop string.

        The newest tokens alone are decoded, as many as the longest stop string has bytes; a find is confirmed on all of them.
        """
        tail = ids[-self.window :] if self.window else []
        return bool(tail) and self.cut(tail)[1] and self.cut(ids)[1]


class RowIsDone(StoppingCriteria):
    """Ends a row at its stop string or when its room is used up; generation ends when all rows have ended.

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

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`input_ids` [B, start + written] -> [B] bool."""
        written = input_ids.shape[1] - self.start
        for row, (ids, room) in enumerate(zip(input_ids[:, self.start :].tolist(), self.rooms, strict=True)):
            if self.lengths[row] is None and (written >= room or self.wording.stopped(ids)):
                self.lengths[row] = written
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)
