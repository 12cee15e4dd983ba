"""A LaTeX answer as text: one spelling for many, what is refused unread, and what algebra does not see of it."""

import re
import unicodedata
from fractions import Fraction

LONGEST = 1000  # characters
DEEPEST = 20  # brackets inside each other; the grammar's time grows fast with them
MOST_DIGITS = 300  # in one number

_LETTERS = {
    "π": r"\pi", "θ": r"\theta", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "φ": r"\phi", "ω": r"\omega", "λ": r"\lambda",
    "∞": r"\infty", "×": r"\times", "·": r"\cdot", "⋅": r"\cdot", "÷": r"\div", "±": r"\pm", "≤": r"\le", "≥": r"\ge", "≠": r"\ne",
    "∪": r"\cup", "∩": r"\cap", "∈": r"\in", "∅": r"\emptyset", "°": r"^\circ", "ℝ": r"\mathbb{R}",
}  # fmt: skip
_DASHES = re.compile("[\u2212\u2010-\u2013]")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9.]+|[A-Za-z])|(?=\{))")
_SPELLINGS = (
    (re.compile(r"\\\$"), ""),
    (re.compile(r"(?<=[0-9]), *\\! *(?=[0-9]{3})"), ""),
    (re.compile(r"\\phantom *(?:\{[^{}]*\}|.)"), ""),
    (re.compile(r"(\\frac) *(\\[a-z]+)(?![a-z{])"), r"\1{\2}"),
    (re.compile(r"^ *(?:\\approx|\\simeq|≈) *"), ""),
)
_FORMULA = re.compile(r"\$+((?:\\\$|[^$])*)\$+|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)

_DIGITS = re.compile(rf"[0-9]{{{MOST_DIGITS + 1}}}")
_BINOMIAL = re.compile(r"\\[dt]?binom[^0-9]*[0-9]{5}|\\choose[^0-9]*[0-9]{5}|[0-9]{5}[^0-9]*\\choose")

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_BASE = re.compile(r"(?<![A-Za-z\\^])[0-9][0-9A-F]*\s*_\s*\{?\s*([0-9]+)")
_UNITS = {
    "second": "s sec secs second seconds", "minute": "min mins minute minutes", "hour": "h hr hrs hour hours", "day": "day days",
    "week": "week weeks", "month": "month months", "year": "yr yrs year years",
    "millimetre": "mm millimeter millimeters millimetre millimetres", "centimetre": "cm centimeter centimeters centimetre centimetres",
    "metre": "m meter meters metre metres", "kilometre": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches", "foot": "ft foot feet", "yard": "yd yard yards", "mile": "mi mile miles", "mile an hour": "mph",
    "gram": "g gram grams", "kilogram": "kg kilogram kilograms", "ounce": "oz ounce ounces", "pound": "lb lbs pound pounds",
    "ton": "ton tons", "litre": "l liter liters litre litres", "gallon": "gallon gallons", "quart": "quart quarts", "cup": "cup cups",
    "cent": "cent cents", "dollar": "dollar dollars", "degree": "degree degrees", "radian": "radian radians",
}  # fmt: skip
_UNIT_OF = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings.split()}
_UNIT = re.compile(r"(?:[0-9)}]|@)\s*(square |cubic |sq\.? |cu\.? )?([A-Za-z]+)\s*\.?\s*(?:\^\s*\{?\s*([0-9])\s*\}?)?\s*$")
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def tidy(text: str) -> str:
    """The answer on one line, without the dollar signs and the full stop around it, its Unicode characters as LaTeX."""
    text = " ".join(text.split())
    if (formula := _FORMULA.fullmatch(text)) is not None:
        text = next(group for group in formula.groups() if group is not None)
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    text = text.strip()
    if not text.endswith(r"\right."):
        text = text.rstrip(".,; ")
    return text if text.isascii() else _as_latex(text)


def _as_latex(text: str) -> str:
    text = _DASHES.sub("-", text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}" if match[1] or match[2] else r"\sqrt", text)
    text = _RAISED_RUN.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    return "".join(map(_character, text))


def _character(character: str) -> str:
    if character in _LETTERS:
        return f"{_LETTERS[character]} "
    if "VULGAR FRACTION" in unicodedata.name(character, "") and (value := unicodedata.numeric(character, 0.0)):
        fraction = Fraction(value).limit_denominator(10)
        return rf"\frac{{{fraction.numerator}}}{{{fraction.denominator}}}"
    return character


def refusal(text: str) -> str | None:
    """Why a text is not worth reading: no person writes such an answer, and parsers take minutes over it. None for any other."""
    if len(text) > LONGEST:
        return f"more than {LONGEST} characters"
    if _DIGITS.search(text):
        return f"a number of more than {MOST_DIGITS} digits"
    if _BINOMIAL.search(text):
        return "a binomial coefficient of a number of five digits"
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return f"more than {DEEPEST} brackets inside each other" if deepest > DEEPEST else None


def same_words(gold: str, answer: str) -> bool | None:
    """Whether two answers are the same words, case and punctuation apart; None where the gold answer is not words alone.

    Words are told by the `\\text{}` (or its kin) around all of them. Digits among them leave a difference open.
    """
    if _WRAPPER.fullmatch(gold.strip()) is None or not (wanted := _letters(gold)) or wanted.isdigit():
        return None
    return True if _letters(answer) == wanted else False if wanted.isalpha() else None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, _WRAPPER.sub(r"\1", text))).lower()


def difference(gold: str, answer: str) -> str | None:
    """What tells two answers apart though their algebra is equal; None where there is no such thing.

    Numerals of two number bases, numbers with two units, and a set in braces beside a point in parentheses: looked at only where
    both answers have one, since the bare number counts for either.
    """
    for what, look in (("another number base", _bases), ("another unit", _unit), ("other brackets", _brackets)):
        first, second = look(gold), look(answer)
        if first and second and first != second:
            return what
    return None


def _bases(text: str) -> set[str]:
    return set(_BASE.findall(_WRAPPER.sub(r"\1", text)))


def _unit(text: str) -> tuple[str, str] | None:
    """The unit at the end and its power."""
    plain = _WRAPPER.sub(r" @ \1 ", re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " @ degrees", text))
    match = _UNIT.search(" ".join(plain.split()))
    if match is None or (unit := _UNIT_OF.get(match[2].lower())) is None:
        return None
    return unit, match[3] or _POWERS.get((match[1] or "").strip(" ."), "1")


def _brackets(text: str) -> str | None:
    bare = re.sub(r"\\(?:left|right)\s*", "", text).strip()
    if bare.startswith(r"\{") and bare.endswith(r"\}"):
        return "set"
    return "point" if bare[:1] in {"(", "["} and bare[-1:] in {")", "]"} and "," in bare else None
