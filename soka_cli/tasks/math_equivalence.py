"""String equality of MATH answers after a normalisation, as its authors define it.

hendrycks/math, modeling/math_equivalence.py at 985bdc1. A lower bound: it knows no algebra, and keeps the original's faults, so
that figures can be compared with published ones.
"""

# In the order of the original. `tfrac` and `dfrac` lose their first letter wherever they stand.
_REPLACED = (
    ("\n", ""),
    (r"\!", ""),
    (r"\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\$", ""),
)
_UNIT = r"\text{ "


def equivalent(first: str | None, second: str | None, *, any_slash: bool = True) -> bool:
    """Whether two answers are the same text once normalised.

    Two absent answers are the same, one is not. Where the normalisation of either breaks down, the texts are compared as they are.

    Args:
        any_slash: whether `x/2`, whose halves are no integers, is left as it is. The copies in lm-evaluation-harness
            (hendrycks_math) and in PiSSA's scripts break down on it instead.
    """
    if first is None or second is None:
        return first is second
    try:
        return normal(first, any_slash=any_slash) == normal(second, any_slash=any_slash)
    except ValueError:
        return first == second


def normal(text: str, *, any_slash: bool = True) -> str:
    """The normalised answer; ValueError for a text on which the original raises (two units, `\\sqrt` or `\\frac` before nothing)."""
    for old, new in _REPLACED:
        text = text.replace(old, new)
    text = _without_unit(text)
    for old, new in ((r"\%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    if not text:
        return text
    if text.startswith("."):
        text = "0" + text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    return _integer_fraction(r"\frac{1}{2}" if text == "0.5" else text, any_slash=any_slash)


def _without_unit(text: str) -> str:
    before, *behind = text.split(_UNIT)
    if len(behind) > 1:
        raise ValueError("more than one unit")
    return before


def _braced_roots(text: str) -> str:
    """`\\sqrt3` -> `\\sqrt{3}`; the character behind the root is the radicand, a space as well as any other."""
    head, *tails = text.split(r"\sqrt")
    if "" in tails:
        raise ValueError("a root of nothing")
    return head + "".join(rf"\sqrt{tail}" if tail[0] == "{" else rf"\sqrt{{{tail[0]}}}{tail[1:]}" for tail in tails)


def _braced_fractions(text: str) -> str:
    """`\\frac12` -> `\\frac{1}{2}`, `\\frac1{72}` -> `\\frac{1}{72}`; all stays as it is where a fraction has one character only."""
    head, *tails = text.split(r"\frac")
    for tail in tails:
        if not tail:
            raise ValueError("a fraction of nothing")
        if tail[0] == "{":
            head += rf"\frac{tail}"
        elif len(tail) < 2:
            return text
        else:
            below = tail[1:] if tail[1] == "{" else f"{{{tail[1]}}}{tail[2:]}"
            head += rf"\frac{{{tail[0]}}}{below}"
    return head


def _integer_fraction(text: str, *, any_slash: bool) -> str:
    """`1/2` -> `\\frac{1}{2}` for two integers in their plain spelling."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        above, below = map(int, parts)
    except ValueError:
        if any_slash:
            return text
        raise
    return rf"\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
