"""Encoded rows into tensors of one length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soka_cli.data.encode import IGNORED, EncodedRow


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right: ids with `pad_id`, labels with -100, and marks what is real in the attention mask.

    The mask comes from the rows' lengths, never from their ids, since `pad_id` may equal the end of sequence (Llama 2 has no pad token).
    """

    pad_id: int

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
        """Rows of lengths l_b -> `input_ids`, `labels`, `attention_mask`, each [B, max l_b], and `row` [B], their numbers."""
        length = max(len(row["input_ids"]) for row in rows)

        def padded(values: Sequence[int], filler: int) -> list[int]:
            return [*values, *[filler] * (length - len(values))]

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], self.pad_id) for row in rows]),
            "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "row": torch.tensor([row["row"] for row in rows]),
        }
