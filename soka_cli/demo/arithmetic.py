"""The arithmetic that the demo's model is taught and its problems ask for, and texts with such equations in them."""

import re
from collections.abc import Mapping

LARGEST = 100  # no operand and no result goes beyond it
TABLE = range(2, 11)  # both factors of a product; the divisor and the quotient of a division

EQUATION = re.compile(r"\[(\w+)([-+*/])(\w+)=(\w+)\]")


def result(left: int, operator: str, right: int) -> int | None:
    """The result of a fact inside the demo's range, else None.

    Sums and differences stay in 2..100, products and exact divisions inside the tables of 2 to 10.
    """
    if operator == "*":
        return left * right if left in TABLE and right in TABLE else None
    if operator == "/":
        return left // right if right in TABLE and left % right == 0 and left // right in TABLE else None
    value = left + right if operator == "+" else left - right
    return value if max(left, right, value) <= LARGEST and min(left, right, value) >= 2 else None


def solve(text: str, numbers: Mapping[str, int]) -> dict[str, int] | None:
    """All quantities of a text: those given and those that its equations `[a+b=x]` define, in order.

    Returns None where one of the equations leaves the demo's range.
    """
    known = dict(numbers)
    for left, operator, right, name in EQUATION.findall(text):
        value = result(known[left], operator, known[right])
        if value is None:
            return None
        known[name] = value
    return known


def fill(text: str, words: Mapping[str, str], quantities: Mapping[str, int]) -> str:
    """The text with `{name}` and `[a+b=x]` replaced: `{who} has [a+b=x] {item}` -> `Tom has 3+4=7 apples`."""

    def spelled(match: re.Match[str]) -> str:
        left, operator, right, name = match.groups()
        return f"{quantities[left]}{operator}{quantities[right]}={quantities[name]}"

    return EQUATION.sub(spelled, text).format_map({**words, **quantities})
