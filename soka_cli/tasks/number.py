"""Numbers as people and models write them, read as exact fractions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 60  # digits; longer runs are no answer, and Python refuses to convert very long ones

_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])"), r" \1/\2 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=[0-9])\\[,!]\s?(?=[0-9])"), ""),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"[−‒–]"), "-"),
)
_COUNT = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\].%$])-[$€£]?|[$€£]-|)"
    rf"(?:(?P<whole>[0-9]+) +)?(?P<above>{_COUNT})/(?P<below>{_COUNT})(?!\.?[0-9])"
    r"|(?P<minus>(?<![\w)\].%$])-[$€£]?|[$€£]-|)"
    rf"(?P<decimal>{_COUNT}(?:\.[0-9]+)?|\.[0-9]+)(?P<power>[eE][+-]?[0-9]{{1,2}}(?!\w))?"
)


@dataclass(frozen=True)
class Number:
    """`text` is the number as written, without commas and currency; `value` is exact."""

    text: str
    value: Fraction
    start: int


def spelled(text: str) -> str:
    """LaTeX fractions, thousands separators and escapes, and other minus signs, in plain characters."""
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def numbers(text: str) -> Iterator[Number]:
    """The numbers of a text that went through `spelled`, from the left.

    Thousands commas, a currency sign, decimals, `1/2`, `2 1/2` and `1.5e3` are read; a hyphen is a sign only where no word or
    number stands before it. Fractions over zero and numbers of more than 60 digits are passed over.
    """
    for match in _NUMBER.finditer(text):
        if (number := _number(match)) is not None:
            yield number


def _number(match: re.Match[str]) -> Number | None:
    if len(match[0]) > LONGEST:
        return None
    sign = "-" if "-" in (match["sign"] or match["minus"] or "") else ""
    if match["decimal"] is not None:
        plain = match["decimal"].replace(",", "") + (match["power"] or "")
        value = Fraction(plain)
    else:
        above, below = (match[part].replace(",", "") for part in ("above", "below"))
        if not int(below):
            return None
        value = int(match["whole"] or 0) + Fraction(int(above), int(below))
        plain = f"{match['whole']} {above}/{below}" if match["whole"] else f"{above}/{below}"
    return Number(text=sign + plain, value=-value if sign else value, start=match.start())


def exact(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else but currency, percent or a full stop; None otherwise."""
    plain = spelled(text).strip().rstrip(".%").strip()
    found = list(numbers(plain))
    if len(found) != 1:
        return None
    rest = _NUMBER.sub("", plain, count=1).strip("$€£ ")
    return found[0].value if not rest else None
