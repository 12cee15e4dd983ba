"""Encoded rows into tensors of one length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soka_cli.data.encode import IGNORED, EncodedRow


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """Rows of lengths l_b -> [B, max l_b], filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right: ids with `pad_id`, labels with -100, and marks what is real in the attention mask.

    The mask comes from the rows' lengths, never from their ids, since `pad_id` may equal the end of sequence (Llama 2 has no pad token).
    """

    pad_id: int

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
        """Rows of lengths l_b -> `input_ids`, `labels`, `attention_mask`, each [B, max l_b], and `row` [B], their numbers."""
        return {
            "input_ids": _padded([row["input_ids"] for row in rows], self.pad_id),
            "labels": _padded([row["labels"] for row in rows], IGNORED),
            "attention_mask": _padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "row": torch.tensor([row["row"] for row in rows]),
        }


@dataclass(frozen=True)
class PackCollator:
    """Lays the rows of each pack one behind the other.

    There is no attention mask: transformers reads off the positions, which begin anew with each row (and at each padding token),
    which tokens may see one another, and a mask would keep it from that.
    """

    pad_id: int

    def __call__(self, packs: Sequence[Sequence[EncodedRow]]) -> dict[str, torch.Tensor]:
        """Packs of l_b tokens in all -> `input_ids`, `labels`, `position_ids`, each [B, max l_b], `row`, the numbers of all rows, and
        `tokens`, how many ids are real.

        No row predicts the first token of the next: a row's own first label is -100.
        """
        ids = [[token for row in pack for token in row["input_ids"]] for pack in packs]
        return {
            "input_ids": _padded(ids, self.pad_id),
            "labels": _padded([[label for row in pack for label in row["labels"]] for pack in packs], IGNORED),
            "position_ids": _padded([[place for row in pack for place in range(len(row["input_ids"]))] for pack in packs], 0),
            "row": torch.tensor([row["row"] for pack in packs for row in pack]),
            "tokens": torch.tensor([sum(map(len, ids))]),
        }
