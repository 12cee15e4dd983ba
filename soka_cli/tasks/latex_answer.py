"""Where a worked text gives its final answer: in its last box, or behind a phrase."""

import re
from collections.abc import Iterator

LONGEST = 2000  # characters behind a phrase in which its answer has to end

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASES = (re.compile(r"the answer is\s*:?\s*", re.IGNORECASE), re.compile(r"the final answer is\s*:?\s*", re.IGNORECASE))
_HOPE = re.compile(r"\.?\s*I hope it is correct", re.IGNORECASE)
_MATHS = r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
_LEADING_MATHS = re.compile(_MATHS, re.DOTALL)
_MATHS_OR_STOP = re.compile(rf"{_MATHS}|(?P<stop>\.(?=\s|$))")
_AROUND = " \t\n*_:"


def final_answer(text: str) -> str | None:
    """The answer that a text ends with, or None.

    The first of these that yields one: its last closed `\\boxed{}` or `\\fbox{}`; what follows the last `The answer is:`; what
    follows the last `The final answer is` (the phrase of Minerva's prompt). Behind a phrase the answer ends with its sentence
    or line, and loses the dollar signs around it.
    """
    if (content := last_box(text)) is not None:
        return content
    return next((answer for phrase in _PHRASES if (answer := _behind(phrase, text)) is not None), None)


def last_box(text: str) -> str | None:
    """What stands in the last closed box, an empty one only where there is no other; None without a box.

    `\\boxed 5` holds all up to the next dollar sign or line's end.
    """
    contents = list(_boxes(text))
    return next((content for content in reversed(contents) if content), contents[-1] if contents else None)


def _boxes(text: str) -> Iterator[str]:
    starts = [match.end() for match in _BOX.finditer(text)]
    ends = dict(brace_pairs(text)) if starts else {}
    for start in starts:
        if text[start : start + 1] != "{":
            yield re.split(r"[$\n]", text[start : start + LONGEST], maxsplit=1)[0].strip().removesuffix(".")
        elif start in ends:
            yield text[start + 1 : ends[start]].strip()


def brace_pairs(text: str) -> Iterator[tuple[int, int]]:
    """Places of each opening brace and of the one that closes it. Escaped braces are characters; those without a partner are left out."""
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            yield opened.pop(), match.start()


def _behind(phrase: re.Pattern[str], text: str) -> str | None:
    places = [match.end() for match in phrase.finditer(text)]
    if not places:
        return None
    rest = _HOPE.split(text[places[-1] : places[-1] + LONGEST], maxsplit=1)[0].strip(_AROUND)
    maths = _LEADING_MATHS.match(rest)
    if maths is not None and not rest[maths.end() :].split("\n", 1)[0].strip(_AROUND + ".,;"):
        return next(group for group in maths.groups() if group).strip() or None
    return _sentence(rest.split("\n", 1)[0]) or None


def _sentence(line: str) -> str:
    """The line up to the full stop that ends its first sentence; full stops inside formulas end nothing."""
    stops = (match.start() for match in _MATHS_OR_STOP.finditer(line) if match["stop"])
    return line[: next(stops, len(line))].strip(_AROUND)
