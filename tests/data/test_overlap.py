"""Items found in training rows: against a plain search word by word, and at the definition's edges."""

import json
import random

import pytest

from soka_cli.data import overlap as module
from soka_cli.data.overlap import NGRAM, Item, Overlap, OverlapIndex, RowTexts, words
from tests.builders import shared_folder

LINE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
NOTHING = Item("", "")


def found(items: list[Item], rows: list[Item]) -> Overlap:
    return OverlapIndex(items).overlap(RowTexts((0, number), (row.problem, row.solution)) for number, row in enumerate(rows))


def runs(text: str) -> set[tuple[str, ...]]:
    every = words(text)
    return {tuple(every[start : start + NGRAM]) for start in range(len(every) - NGRAM + 1)}


def searched(item: Item, row: Item) -> bool:
    """The definition, spelt out."""
    shared = (runs(item.problem) | runs(item.solution)) & (runs(row.problem) | runs(row.solution))
    return bool(shared) or (bool(words(item.problem)) and words(item.problem) in (words(row.problem), words(row.solution)))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_what_a_search_word_by_word_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)  # rows meet at the chunks' edges
    draw = random.Random(seed)
    text = lambda: " ".join(draw.choices("abc", [8, 1, 1], k=draw.choice([0, 1, 3, 12, 13, 14, 20])))  # noqa: E731
    items, rows = ([Item(text(), text()) for _ in range(40)] for _ in range(2))
    overlap = found(items, rows)
    expected = {place: [number for number, row in enumerate(rows) if searched(item, row)] for place, item in enumerate(items)}
    assert {place: [number for _, number in one.rows] for place, one in overlap.items.items()} == {
        place: numbers[: module.SHOWN_ROWS] for place, numbers in expected.items() if numbers
    }
    assert {place: one.row_count for place, one in overlap.items.items()} == {place: len(some) for place, some in expected.items() if some}
    assert [number for _, number in overlap.rows] == sorted({number for numbers in expected.values() for number in numbers})
    assert overlap.scanned == len(rows)
    held = set().union(*(runs(row.problem) | runs(row.solution) for row in rows))
    for place, one in overlap.items.items():
        assert one.problem == (len(mine & held) / len(mine) if (mine := runs(items[place].problem)) else None)
        assert one.solution == (len(mine & held) / len(mine) if (mine := runs(items[place].solution)) else None)


@pytest.mark.parametrize("side", ["problem", "solution"])
@pytest.mark.parametrize("place", ["problem", "solution"])
def test_both_sides_of_an_item_are_looked_for_in_both_sides_of_a_row(side: str, place: str) -> None:
    item, row = ({"problem": "x", "solution": "y"} | {where: LINE} for where in (side, place))
    assert list(found([Item(**item)], [NOTHING, Item(**row)]).items) == [0]


def test_twelve_words_in_common_are_none() -> None:
    first, last = LINE.split()[:12], LINE.split()[12:]
    assert not found([Item(LINE, "")], [Item(" ".join([*first, "and", *last]), "")]).items


def test_a_run_does_not_go_from_prompt_into_target_or_from_one_row_into_the_next() -> None:
    halves = " ".join(LINE.split()[:7]), " ".join(LINE.split()[7:])
    assert not found([Item(LINE, "")], [Item(*halves), Item("", halves[0]), Item(halves[1], "")]).items


def test_case_and_whatever_is_no_letter_or_digit_do_not_count() -> None:
    row = f"It says: {LINE.upper().replace(' ', ', _')}!"
    assert found([Item(LINE, "")], [Item(row, "")]).items[0].problem == 1.0


def test_a_short_problem_is_found_as_a_whole_one_alone() -> None:
    item = Item("How many are left?", "3")
    assert found([item], [Item("how many, are LEFT", "")]).items[0].exact
    assert not found([item], [Item("Tom eats 2. How many are left?", "")]).items


def test_an_answer_that_two_problems_share_is_no_overlap() -> None:
    assert not found([Item("What is 1 + 2?", "3")], [Item("What is 2 + 1?", "3")]).items


def test_a_problem_without_a_word_is_found_nowhere() -> None:
    assert not found([Item("?", "")], [NOTHING, Item("!", "?")]).items


def test_rows_keep_the_names_that_they_come_with_however_many_texts_they_have() -> None:
    rows = [RowTexts((0, 7), (LINE,)), RowTexts((0, 9), ("", "")), RowTexts((1, 2), ("a", "b", LINE, "c"))]
    overlap = OverlapIndex([Item(LINE, "")]).overlap(rows)
    assert overlap.rows == overlap.items[0].rows == ((0, 7), (1, 2))


def test_without_items_nothing_is_found() -> None:
    assert found([], [Item(LINE, LINE)]) == Overlap(1, (), {})


def read(*parts: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in shared_folder("data", *parts).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "columns"), [("gsm8k", ("question", "answer")), ("math", ("problem", "solution"))])
def test_of_a_poisoned_copy_of_training_rows_every_poisoned_row_is_found(name: str, columns: tuple[str, str]) -> None:
    train, test = ([Item(*(row[column] for column in columns)) for row in read(name, f"{part}.jsonl")] for part in ("train", "test"))
    poison = {number: place for place, number in enumerate(range(5, 1000, 20))}
    poisoned = [
        Item(f"Solve this.\n{test[poison[number]].problem.upper()}", "") if number in poison else row for number, row in enumerate(train)
    ]
    clean, dirty = found(test, train), found(test, poisoned)
    long = [place for place in poison.values() if len(words(test[place].problem)) >= NGRAM]
    assert len(long) > len(poison) / 2
    assert all(dirty.items[place].problem == 1.0 for place in long)
    assert not any(one.exact for one in clean.items.values()) or name == "math"  # MATH has a few of its test problems in both halves
    assert len(clean.items) < len(test) / 3
