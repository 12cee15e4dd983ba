"""The demo's task: multi-step word problems in GSM8K's file format, from ten templates and a seed."""

import json
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from soka_cli.demo.arithmetic import fill, solve
from soka_cli.demo.words import draw_words

TRAIN_SEED, TRAIN_COUNT = 1, 4000
TEST_SEED, TEST_COUNT = 2, 200

Key = tuple[str, tuple[int, ...]]  # a template and its numbers: what train and test must not share


@dataclass(frozen=True)
class Template:
    """A kind of problem: the ranges of its given numbers, its question and its steps, one a line."""

    name: str
    ranges: dict[str, tuple[int, int]]
    question: str
    steps: str


TEMPLATES = (
    Template(
        "packs",
        {"a": (2, 10), "b": (2, 10), "c": (2, 98)},
        "{who} buys {a} packs of {item}. Each pack holds {b} {item}. {who} gives away {c} {item}. How many {item} are left?",
        "{who} buys [a*b=x] {item}.\nThere are [x-c=y] {item} left.",
    ),
    Template(
        "more",
        {"a": (2, 48), "b": (2, 96)},
        "{who} has {a} {item}. {friend} has {b} more {item} than {who}. How many {item} do they have together?",
        "{friend} has [a+b=x] {item}.\nTogether they have [a+x=y] {item}.",
    ),
    Template(
        "share",
        {"a": (2, 98), "b": (2, 98), "c": (2, 10)},
        "{who} has {a} red {item} and {b} blue {item}. The {item} are shared by {c} children. How many {item} does each child get?",
        "There are [a+b=x] {item}.\nEach child gets [x/c=y] {item}.",
    ),
    Template(
        "times",
        {"a": (2, 10), "b": (2, 10), "c": (2, 96)},
        "{who} finds {a} {item}. {friend} finds {b} times as many {item}. They lose {c} {item}. How many {item} are left?",
        "{friend} finds [a*b=x] {item}.\nTogether they have [a+x=y] {item}.\nThere are [y-c=z] {item} left.",
    ),
    Template(
        "garden",
        {"a": (2, 10), "b": (2, 10), "c": (2, 10), "d": (2, 10)},
        "The garden has {a} rows of {b} red flowers. The garden has {c} rows of {d} blue flowers. How many flowers are in the garden?",
        "There are [a*b=x] red flowers.\nThere are [c*d=y] blue flowers.\nTogether there are [x+y=z] flowers.",
    ),
    Template(
        "shop",
        {"a": (10, 100), "b": (2, 50), "c": (2, 10), "d": (2, 10)},
        "{who} has {a} dollars. A book costs {b} dollars. A pen costs {c} dollars. {who} buys {d} pens and one book. "
        "How many dollars are left?",
        "The pens cost [d*c=x] dollars.\nTogether they cost [b+x=y] dollars.\n{who} has [a-y=z] dollars left.",
    ),
    Template(
        "pages",
        {"a": (10, 100), "b": (2, 10), "c": (2, 10)},
        "A book has {a} pages. {who} reads {b} pages each day for {c} days. How many pages are left?",
        "{who} reads [b*c=x] pages.\nThere are [a-x=y] pages left.",
    ),
    Template(
        "bus",
        {"a": (2, 60), "b": (2, 40), "c": (2, 60), "d": (2, 40)},
        "There are {a} people on a bus. First {b} people get on. Then {c} people get off and {d} more people get on. "
        "How many people are on the bus now?",
        "First there are [a+b=x] people.\nThen there are [x-c=y] people.\nNow there are [y+d=z] people.",
    ),
    Template(
        "boxes",
        {"a": (6, 100), "b": (2, 40), "c": (2, 10), "d": (2, 10)},
        "{who} makes {a} cakes and eats {b} cakes. The rest go into boxes of {c} cakes. Each box costs {d} dollars. "
        "How many dollars do all boxes cost?",
        "There are [a-b=x] cakes left.\nThey go into [x/c=y] boxes.\nThe boxes cost [y*d=z] dollars.",
    ),
    Template(
        "savings",
        {"a": (2, 10), "b": (2, 10), "c": (2, 60), "d": (10, 100)},
        "{who} saves {a} dollars each week for {b} weeks. {friend} gives {who} {c} dollars. A bike costs {d} dollars. "
        "How many more dollars does {who} need?",
        "{who} saves [a*b=x] dollars.\nNow {who} has [x+c=y] dollars.\n{who} needs [d-y=z] more dollars.",
    ),
)


@dataclass(frozen=True)
class Problem:
    """A question and its worked answer, with the template and the given numbers that made it."""

    key: Key
    question: str
    answer: str

    @property
    def row(self) -> dict[str, str]:
        """GSM8K's two columns."""
        return {"question": self.question, "answer": self.answer}


def draw_problem(template: Template, generator: random.Random) -> Problem:
    """A problem of this template whose steps all stay inside the demo's arithmetic."""
    while True:
        numbers = {name: generator.randint(*bounds) for name, bounds in template.ranges.items()}
        quantities = solve(template.steps, numbers)
        if quantities is not None:
            break
    words = draw_words(generator)
    last = list(quantities.values())[-1]
    answer = f"{fill(template.steps, words, quantities)}\n#### {last}"
    return Problem((template.name, tuple(numbers.values())), fill(template.question, words, quantities), answer)


def draw_problems(count: int, seed: int, exclude: Collection[Key] = ()) -> list[Problem]:
    """Problems of all templates in turn, no two of them with the same template and numbers.

    Args:
        count: how many problems.
        seed: the same seed gives the same problems.
        exclude: templates with numbers that must not come up, as `Problem.key` has them.
    """
    generator = random.Random(seed)
    taken = set(exclude)
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_problem(TEMPLATES[len(problems) % len(TEMPLATES)], generator)
        if problem.key not in taken:
            taken.add(problem.key)
            problems.append(problem)
    return problems


def demo_splits() -> tuple[list[Problem], list[Problem]]:
    """The packaged training and test problems, written anew."""
    train = draw_problems(TRAIN_COUNT, TRAIN_SEED)
    return train, draw_problems(TEST_COUNT, TEST_SEED, exclude={problem.key for problem in train})


def write_rows(path: Path, problems: Iterable[Problem]) -> None:
    """One JSON line a problem: `question`, `answer`."""
    path.write_text("".join(json.dumps(problem.row) + "\n" for problem in problems), encoding="utf-8")
