"""What train and test of the benchmarks share, a poisoned copy beside them, and how long a pass over MetaMathQA's number of rows takes.

python -m benchmarks.contamination --data FOLDER [--rows 395000]      (a folder with gsm8k/, math/ and mbpp/ as upstream writes them)
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

from soka_cli.data.load import load_rows
from soka_cli.data.overlap import Item, Overlap, OverlapIndex, RowTexts, words
from soka_cli.stages.contamination import is_near
from soka_cli.stages.decontamination import item_of
from soka_cli.tasks.base import task_named

FILES = {
    "gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    "math": ("math/train.jsonl", "math/test.jsonl"),
    "mbpp": ("mbpp/mbpp.jsonl", "mbpp/mbpp.jsonl"),  # its splits follow from the ids
}
POISON = 20  # every so many training rows, one is a test problem in capitals with words around it


def items_in(task: str, path: Path, split: str) -> list[Item]:
    judge = task_named(task)
    return [item_of(judge.example(row, index)) for index, row in enumerate(load_rows(str(path), split=split, task=task))]


def texts(rows: Iterable[Item]) -> Iterator[RowTexts]:
    return (RowTexts((0, number), (row.problem, row.solution)) for number, row in enumerate(rows))


def poisoned(rows: Sequence[Item], items: Sequence[Item]) -> tuple[list[Item], set[int]]:
    """The rows with test problems in place of some, and which items these are."""
    places = {number: place for place, number in enumerate(range(0, len(rows), POISON)) if place < len(items)}
    copy = [
        Item(f"Solve it.\n{items[places[number]].problem.upper()}\nShow your work.", "") if number in places else row
        for number, row in enumerate(rows)
    ]
    return copy, set(places.values())


def line(name: str, items: Sequence[Item], found: Overlap) -> list[str]:
    overlaps = found.items.values()
    counts = (
        len(overlaps),
        sum(one.exact or bool(one.problem) for one in overlaps),
        sum(bool(one.solution) for one in overlaps),
        sum(map(is_near, overlaps)),
        sum(one.exact for one in overlaps),
        len(found.rows),
    )
    return [name, f"{found.scanned:,}", f"{len(items):,}", *(f"{count:,}" for count in counts)]


def shared_text(data: Path) -> None:
    header = ["data", "rows", "items", "overlap", "in the problem", "in the solution", "near copies", "whole problems", "rows with some"]
    table = [header, ["---"] * len(header)]
    notes = []
    for task, (train, test) in FILES.items():
        rows, items = items_in(task, data / train, "train"), items_in(task, data / test, "test")
        index = OverlapIndex(items)
        table.append(line(f"{task}, train and test", items, index.overlap(texts(rows))))
        copy, hidden = poisoned(rows, items)
        found = index.overlap(texts(copy))
        table.append(line(f"{task}, poisoned", items, found))
        long = {place for place in hidden if len(words(items[place].problem)) >= 13}
        notes.append(f"{task}: of {len(hidden)} hidden problems {len(hidden & found.items.keys())} are found, "
                     f"{len(long & found.items.keys())} of the {len(long)} with 13 words or more")  # fmt: skip
    print("\n".join(f"| {' | '.join(row)} |" for row in table), *notes, sep="\n")


def speed(data: Path, count: int) -> None:
    """A pass over so many rows of JSON lines' texts: those of GSM8K and MATH again and again, against MATH's test items."""
    rows = [*items_in("math", data / FILES["math"][0], "train"), *items_in("gsm8k", data / FILES["gsm8k"][0], "train")]
    started = time.monotonic()
    index = OverlapIndex(items_in("math", data / FILES["math"][1], "test"))
    built = time.monotonic()
    found = index.overlap(texts(islice(chain.from_iterable(repeat(rows)), count)))
    total = sum(len(words(row.problem)) + len(words(row.solution)) for row in rows) / len(rows)
    print(json.dumps({"index_s": round(built - started, 1), "pass_s": round(time.monotonic() - built, 1), "rows": found.scanned,
                      "words_a_row": round(total)}))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=395_000)
    options = parser.parse_args()
    shared_text(options.data)
    speed(options.data, options.rows)
