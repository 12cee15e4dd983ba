"""The text that the demo's base model is trained on: arithmetic, short stories, one-step questions.

It teaches sums, the words of the task and how a story's numbers enter an equation. It never holds a question that needs
two steps, nor an answer line `#### N`: those are what the adapter has to teach.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from soka_cli.demo.arithmetic import EQUATION, LARGEST, TABLE, fill, result, solve
from soka_cli.demo.words import ITEMS, PEOPLE, draw_words

SHARES = {"arithmetic": 0.35, "story": 0.50, "question": 0.15}  # of the characters

# A story's whole equation, the result of an arithmetic line, the bare answer to a question.
NUMBERS = re.compile(r"(?<= )\d+[-+*/]\d+=\d+|(?<==)\d+|(?<=\nAnswer: )\d+")
NAMES = re.compile(rf"\b(?:{'|'.join(PEOPLE + ITEMS)})\b")


def decided(text: str) -> list[tuple[int, int]]:
    """Spans that the text before them decides: its equations and bare answers, and the names that it repeats."""
    spans = [match.span() for match in NUMBERS.finditer(text)]
    named: set[str] = set()
    for match in NAMES.finditer(text):
        if match[0] in named:
            spans.append(match.span())
        named.add(match[0])
    return spans


@dataclass(frozen=True)
class Scene:
    """One step of a story: what is given, the equation that follows, a question with that result, what is counted.

    A scene that carries on has no question; `v` is the result of the scene before, and `item` what that one counted.
    """

    given: str
    equation: str
    question: str = ""
    counted: str = "{item}"


OPENINGS = (
    Scene("{who} buys {a} packs of {item}. Each pack holds {b} {item}.", "{who} buys [a*b=x] {item}.", "How many {item} does {who} buy?"),
    Scene("{a} packs hold {b} {item} in all.", "Each pack holds [b/a=x] {item}.", "How many {item} does each pack hold?"),
    Scene("{who} has {a} {item}. {who} gives away {b} {item}.", "There are [a-b=x] {item} left.", "How many {item} are left?"),
    Scene("{who} has {a} {item}. They lose {b} {item}.", "There are [a-b=x] {item} left.", "How many {item} are left?"),
    Scene(
        "{who} has {a} {item}. {friend} has {b} more {item} than {who}.",
        "{friend} has [a+b=x] {item}.",
        "How many {item} does {friend} have?",
    ),
    Scene(
        "{who} has {a} {item} and {friend} has {b} {item}.", "Together they have [a+b=x] {item}.", "How many {item} do they have together?"
    ),
    Scene("{who} has {a} red {item} and {b} blue {item}.", "There are [a+b=x] {item}.", "How many {item} are there?"),
    Scene("The {a} {item} are shared by {b} children.", "Each child gets [a/b=x] {item}.", "How many {item} does each child get?"),
    Scene(
        "{who} finds {a} {item}. {friend} finds {b} times as many {item}.",
        "{friend} finds [a*b=x] {item}.",
        "How many {item} does {friend} find?",
    ),
    Scene(
        "The garden has {a} rows of {b} red flowers.",
        "There are [a*b=x] red flowers.",
        "How many red flowers are in the garden?",
        "flowers",
    ),
    Scene(
        "The garden has {a} rows of {b} blue flowers.",
        "There are [a*b=x] blue flowers.",
        "How many blue flowers are in the garden?",
        "flowers",
    ),
    Scene(
        "The garden has {a} red flowers and {b} blue flowers.",
        "Together there are [a+b=x] flowers.",
        "How many flowers are in the garden?",
        "flowers",
    ),
    Scene(
        "A pen costs {a} dollars. {who} buys {b} pens.", "The pens cost [b*a=x] dollars.", "How many dollars do the pens cost?", "dollars"
    ),
    Scene(
        "A book costs {a} dollars and a pen costs {b} dollars.",
        "Together they cost [a+b=x] dollars.",
        "How many dollars do they cost together?",
        "dollars",
    ),
    Scene(
        "{who} has {a} dollars. {who} buys one book. A book costs {b} dollars.",
        "{who} has [a-b=x] dollars left.",
        "How many dollars are left?",
        "dollars",
    ),
    Scene("{who} reads {a} pages each day for {b} days.", "{who} reads [a*b=x] pages.", "How many pages does {who} read?", "pages"),
    Scene("A book has {a} pages. {who} reads {b} pages.", "There are [a-b=x] pages left.", "How many pages are left?", "pages"),
    Scene(
        "There are {a} people on a bus. First {b} people get on.",
        "First there are [a+b=x] people.",
        "How many people are on the bus now?",
        "people",
    ),
    Scene(
        "There are {a} people on a bus. Then {b} people get off.",
        "Then there are [a-b=x] people.",
        "How many people are on the bus now?",
        "people",
    ),
    Scene(
        "There are {a} people on a bus. Now {b} more people get on.",
        "Now there are [a+b=x] people.",
        "How many people are on the bus now?",
        "people",
    ),
    Scene("{who} makes {a} cakes and eats {b} cakes.", "There are [a-b=x] cakes left.", "How many cakes are left?", "cakes"),
    Scene("The {a} cakes go into boxes of {b} cakes.", "They go into [a/b=x] boxes.", "How many boxes are there?", "boxes"),
    Scene(
        "There are {a} boxes. Each box costs {b} dollars.",
        "The boxes cost [a*b=x] dollars.",
        "How many dollars do all boxes cost?",
        "dollars",
    ),
    Scene(
        "{who} saves {a} dollars each week for {b} weeks.", "{who} saves [a*b=x] dollars.", "How many dollars does {who} save?", "dollars"
    ),
    Scene(
        "{who} has {a} dollars. {friend} gives {who} {b} dollars.",
        "Now {who} has [a+b=x] dollars.",
        "How many dollars does {who} have now?",
        "dollars",
    ),
    Scene(
        "{who} has {a} dollars. A bike costs {b} dollars.",
        "{who} needs [b-a=x] more dollars.",
        "How many more dollars does {who} need?",
        "dollars",
    ),
)

CARRIED_ON = (
    Scene("Then {who} gives away {c} {item}.", "Now there are [v-c=y] {item} left."),
    Scene("They lose {c} {item}.", "There are [v-c=y] {item} left."),
    Scene("{who} finds {c} more {item}.", "Now {who} has [v+c=y] {item}."),
    Scene("{friend} has {c} {item}.", "Together they have [v+c=y] {item}."),
    Scene("{friend} has {c} more {item} than {who}.", "{friend} has [v+c=y] {item}."),
    Scene("{friend} has {c} times as many {item}.", "{friend} has [v*c=y] {item}."),
    Scene("The {item} are shared by {c} children.", "Each child gets [v/c=y] {item}."),
    Scene("The {item} go into {c} boxes.", "Each box holds [v/c=y] {item}."),
    Scene("The rest go into boxes of {c} {item}.", "They go into [v/c=y] boxes."),
    Scene("{who} buys {c} more {item}.", "Then there are [v+c=y] {item}."),
    Scene("{friend} needs {c} {item}.", "{friend} needs [c-v=y] more {item}."),
)


HEADINGS = ("#### {who} and the {item}\n", "#### The {item} of {who}\n", "#### {who} and {friend}\n")


@dataclass(frozen=True)
class Told:
    """A scene with its words and numbers filled in, and what the next scene may carry on from."""

    given: str
    equation: str
    question: str
    value: int
    words: dict[str, str]


def draw_fact(operator: str, generator: random.Random) -> tuple[int, int]:
    """Both operands of a fact inside the demo's range; sums and minuends are uniform."""
    if operator in "*/":
        left, right = generator.choice(TABLE), generator.choice(TABLE)
        return (left * right, right) if operator == "/" else (left, right)
    whole = generator.randint(4, LARGEST)
    part = generator.randint(2, whole - 2)
    return (whole, part) if operator == "-" else (part, whole - part)


def tell(scene: Scene, words: dict[str, str], numbers: dict[str, int]) -> Told:
    """The scene in words. Its equation has to stay inside the demo's range."""
    quantities = solve(scene.equation, numbers)
    assert quantities is not None, (scene, numbers)
    given, equation, question, counted = (
        fill(text, words, quantities) for text in (scene.given, scene.equation, scene.question, scene.counted)
    )
    return Told(given, equation, question, list(quantities.values())[-1], {**words, "item": counted})


def open_story(generator: random.Random) -> Told:
    """A scene that needs no other."""
    scene = generator.choice(OPENINGS)
    left, operator, right, _ = EQUATION.findall(scene.equation)[0]
    return tell(scene, draw_words(generator), dict(zip((left, right), draw_fact(operator, generator), strict=True)))


def carry_on(before: Told, generator: random.Random) -> Told:
    """A scene that starts from the result of another."""
    while True:
        scene = generator.choice(CARRIED_ON)
        left, operator, right, _ = EQUATION.findall(scene.equation)[0]
        drawn = left if right == "v" else right
        choices = [
            {"v": before.value, drawn: number}
            for number in range(2, LARGEST + 1)
            if result(*((number, operator, before.value) if drawn == left else (before.value, operator, number))) is not None
        ]
        if choices:
            return tell(scene, before.words, generator.choice(choices))


def arithmetic(generator: random.Random) -> str:
    """Lines such as `39+12=51`."""
    lines = []
    for operator in generator.choices("+-*/", weights=(35, 35, 15, 15), k=generator.randint(4, 12)):
        left, right = draw_fact(operator, generator)
        lines.append(f"{left}{operator}{right}={result(left, operator, right)}")
    return "\n".join(lines)


def story(generator: random.Random) -> str:
    """One scene, two side by side, or up to three that carry on; equations follow at once or at the end."""
    scenes = [open_story(generator)]
    if generator.random() < 0.25:
        scenes.append(open_story(generator))
    else:
        for _ in range(generator.choice((0, 1, 1, 2))):
            scenes.append(carry_on(scenes[-1], generator))
    if generator.random() < 0.5:
        sentences = [text for scene in scenes for text in (scene.given, scene.equation)]
    else:
        sentences = [scene.given for scene in scenes] + [scene.equation for scene in scenes]
    heading = fill(generator.choice(HEADINGS), scenes[0].words, {}) if generator.random() < 0.25 else ""
    return heading + sentences[0] + "".join(generator.choice("  \n") + sentence for sentence in sentences[1:])


def question(generator: random.Random) -> str:
    """A question with one step and its bare answer."""
    scene = open_story(generator)
    return f"Question: {scene.given} {scene.question}\nAnswer: {scene.value}"


WRITERS = {"arithmetic": arithmetic, "story": story, "question": question}


def documents(seed: int) -> Iterator[str]:
    """Endless documents in the shares of `SHARES`; the same seed gives the same ones."""
    generator = random.Random(seed)
    written = dict.fromkeys(SHARES, 0)
    while True:
        kind = min(SHARES, key=lambda name: written[name] / SHARES[name])
        document = WRITERS[kind](generator)
        written[kind] += len(document)
        yield document
