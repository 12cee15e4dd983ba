"""Numbers behind sympy expressions: how large they would grow, and whether two of them are apart at all.

Math-Verify compares to 15 digits with small remainders chopped off, so it takes 2^-99 for 2^-98; here 60 digits of the quotient
decide. Imported in the worker process only.
"""

import math
from itertools import cycle
from typing import Any

from sympy import Basic, Float, Integer, Interval, MatrixBase, Rational, Set, Tuple, factorial
from sympy.core.expr import Expr, UnevaluatedExpr
from sympy.core.relational import Relational

MOST_BITS = 100_000  # of a number written out; 2004! has 19,000
LARGEST_FACTORIAL = 10_000
DIGITS = 60
CLOSE = Rational(1, 10**50)
ROUNDED = Rational(1, 10**5)  # relative, where an answer is a decimal; Math-Verify itself asks for six places
PROBES = (Rational(13, 7), Rational(29, 11), Rational(41, 17))  # values for the variables, in turn


def size(expression: Any) -> float:
    """Bits that the numbers of an unevaluated expression would take once powers and factorials are multiplied out; a rough bound."""
    if isinstance(expression, Rational):
        return float(int(expression.p).bit_length() + int(expression.q).bit_length())
    if isinstance(expression, MatrixBase):
        return sum(map(size, expression.flat()))
    if not isinstance(expression, Basic) or not expression.args:
        return 1.0
    if isinstance(expression, factorial):
        largest = _count(expression.args[0])
        return largest * math.log2(largest + 2) if largest <= LARGEST_FACTORIAL else math.inf
    if expression.is_Pow:
        base, exponent = expression.args
        return size(exponent) if exponent.free_symbols else size(base) * max(1.0, _count(exponent))
    return sum(map(size, expression.args))


def _count(number: Any) -> float:
    """The magnitude of a number without variables; infinite for one that is itself too large to be written out."""
    if number.free_symbols:
        return 1.0
    if size(number) > 64:
        return math.inf
    value = abs(complex(number.evalf(15, maxn=30)))
    return value if math.isfinite(value) else math.inf


def apart(first: Any, second: Any) -> bool:
    """Whether two expressions that were called equal are surely different.

    False says nothing: what has no number for its variables' values, and what is built in two ways, is not looked into.
    """
    if isinstance(first, MatrixBase) and isinstance(second, MatrixBase):
        return first.shape != second.shape or any(map(apart, first.flat(), second.flat()))
    if isinstance(first, Interval) and isinstance(second, Interval):
        return apart(first.start, second.start) or apart(first.end, second.end)
    if isinstance(first, Tuple) and isinstance(second, Tuple):
        return any(map(apart, first.args, second.args))
    if isinstance(first, Set) and isinstance(second, Set):
        return _sets_apart(first, second)
    if isinstance(first, Relational) or isinstance(second, Relational):
        return False
    return isinstance(first, Expr) and isinstance(second, Expr) and _numbers_apart(first, second)


def _sets_apart(first: Set, second: Set) -> bool:
    """Whether some member of one finite set of numbers has no partner in the other."""
    if not (first.is_FiniteSet and second.is_FiniteSet) or first.free_symbols or second.free_symbols:
        return False
    here, there = list(first.args), list(second.args)
    return any(all(apart(member, other) for other in there) for member in here) or any(
        all(apart(member, other) for member in here) for other in there
    )


def _numbers_apart(first: Expr, second: Expr) -> bool:
    names = sorted(first.free_symbols | second.free_symbols, key=str)
    values = dict(zip(names, cycle(PROBES)))
    scale = _percentages(first) - _percentages(second)
    one, other = (_number(expression.subs(values)) for expression in (first, second))
    if one is None or other is None:
        return False
    if abs(scale) == 1 and not _far(one * Integer(100) ** scale, other, first, second):
        return False
    return _far(one, other, first, second)


def _percentages(expression: Expr) -> int:
    """1 for Math-Verify's reading of `10\\%`, which counts as 10 and as 0.1; else 0."""
    return int(UnevaluatedExpr(Rational(1, 100)) in expression.args)


def _number(expression: Basic) -> Any:
    """60 digits of a number, or the exact fraction; None where there is no finite one."""
    value = expression.doit()
    if not isinstance(value, Rational):
        value = value.evalf(DIGITS, maxn=10 * DIGITS)
    return value if getattr(value, "is_number", False) and value.is_finite else None


def _far(one: Any, other: Any, first: Expr, second: Expr) -> bool:
    if one == other:
        return False
    limit = ROUNDED if first.has(Float) or second.has(Float) else CLOSE
    return bool(abs(one - other) > limit * max(abs(one), abs(other)))
