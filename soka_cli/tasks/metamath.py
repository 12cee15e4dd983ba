"""Answers as MetaMath's and PiSSA's scripts read them: behind a phrase, word for word, and nowhere else.

meta-math/MetaMath eval_gsm8k.py and eval_math.py; GraphPKU/PiSSA utils/test_acc.py, which repeats both.
"""

import re
from fractions import Fraction

from soka_cli.tasks.math_equivalence import equivalent

PHRASE = "The answer is: "
NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")


def rounded_equal(completion: str, gold: str) -> bool:
    """GSM8K: the first number behind the last phrase, rounded to a whole one, against the gold answer.

    So 71.6 is right for 72 and 1/2 for 0 (halves go to the even neighbour), and 12,345,678 is read as 12,345.
    """
    try:
        number = rounded(completion)
        return number is not None and float(number) == float(gold.replace(",", ""))
    except (ValueError, OverflowError):
        return False


def rounded(completion: str) -> int | None:
    """The whole number that a completion gives as its answer; None without the phrase, or without a number behind it."""
    _, phrase, behind = completion.rpartition(PHRASE)
    match = NUMBER.search(behind.strip()) if phrase else None
    if match is None:
        return None
    above, slash, below = match[0].replace(",", "").partition("/")
    if not slash or below == "0":  # the scripts take the upper half where the lower one is 0
        return round(float(above))
    return round(float(Fraction(f"{above}/{below}"))) if above.strip("+-") and int(below) else None


def phrased_equal(completion: str, gold: str) -> bool:
    """MATH: the text behind the last phrase up to a full stop at a line's end, by the authors' normalisation. No box is looked at."""
    _, phrase, behind = completion.rpartition(PHRASE)
    if not phrase:
        return False
    answer = behind.split(".\n")[0].strip().removesuffix(".").strip()
    return equivalent(answer, gold, any_slash=False)
