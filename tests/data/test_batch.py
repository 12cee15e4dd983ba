"""Batches: padding is told from content by length, never by id."""

from soka_cli.data.batch import Collator, PackCollator
from soka_cli.data.encode import EncodedRow

ROWS: list[EncodedRow] = [
    {"input_ids": [1, 5, 6, 2], "labels": [-100, 5, 6, 2], "row": 3},
    {"input_ids": [1, 2], "labels": [-100, 2], "row": 9},
]


def test_a_pad_id_that_equals_eos_hides_no_eos() -> None:
    batch = Collator(pad_id=2)(ROWS)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2], [1, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 5, 6, 2], [-100, 2, -100, -100]]


def test_rows_keep_their_numbers() -> None:
    assert Collator(pad_id=0)(ROWS)["row"].tolist() == [3, 9]


def test_a_pack_begins_its_positions_anew_with_each_row_and_has_no_mask() -> None:
    batch = PackCollator(pad_id=2)([ROWS, ROWS[1:]])
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2, 1, 2], [1, 2, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 5, 6, 2, -100, 2], [-100, 2, -100, -100, -100, -100]]
    assert "attention_mask" not in batch
    assert (batch["row"].tolist(), batch["tokens"].tolist()) == ([3, 9, 9], [8])
