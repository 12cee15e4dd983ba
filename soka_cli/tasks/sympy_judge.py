"""Equality of two answers by sympy. Imported in the worker process only; symbolic.py says what each judge is for."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import PSParser
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig
from sympy import Eq, FiniteSet, Mul, Symbol
from sympy.core.function import AppliedUndef
from sympy.logic.boolalg import And
from sympy.parsing.latex import parse_latex

from soka_cli.tasks.latex_text import difference, refusal, same_words, tidy
from soka_cli.tasks.sympy_value import MOST_BITS, apart, size

Verdict = tuple[bool, str | None]

# LaTeX alone, since Math-Verify hands plain arithmetic to Python's eval; then without its units, for which it takes some variables.
LATEX = LatexExtractionConfig(boxed_match_priority=-1)
READINGS = ([LATEX], [replace(LATEX, normalization_config=replace(LATEX.normalization_config, units=False))])
MINERVA_SECONDS = 5


def symbolic(gold: str, answer: str) -> Verdict:
    """Math-Verify on two bare answers, its known false verdicts taken back; the gold answer is the first."""
    gold, answer = tidy(gold), tidy(answer)
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return True, None
    for side, text in (("gold answer", gold), ("answer", answer)):
        if (reason := refusal(text)) is not None:
            return False, f"the {side} has {reason}"
    if (same := same_words(gold, answer)) is not None:
        return same, None
    if (reason := difference(gold, answer)) is not None:
        return False, reason
    return _equal(read(gold), read(answer))


def read(text: str) -> Any:
    """The expression of a bare answer; None where Math-Verify finds none."""
    formula = text if "$" in text else f"${text}$"
    with _percentages_read():
        for reading in READINGS:
            if found := parse(formula, reading, fallback_mode="no_fallback", parsing_timeout=None):
                return found[0]
    return None


@contextmanager
def _percentages_read() -> Iterator[None]:
    """Lends latex2sympy2_extended what its grammar for antlr 4.11 lacks and `10\\%` breaks down on.

    For symbolic only: the harness's own metrics are to fail where the harness fails.
    """
    if hasattr(PSParser.AtomContext, "FUNC_GAMMA"):
        yield
        return
    PSParser.AtomContext.FUNC_GAMMA = lambda atom: None
    try:
        yield
    finally:
        del PSParser.AtomContext.FUNC_GAMMA


def _equal(gold: Any, answer: Any) -> Verdict:
    for side, expression in (("gold answer", gold), ("answer", answer)):
        if expression is None:
            return False, f"the {side} can't be parsed"
        if size(expression) > MOST_BITS:
            return False, f"the {side} is too large a number to be written out"
    sides = _equations(gold), _equations(answer)
    if any(sides) and not all(sides):
        if not (_names_its_value(gold) and _names_its_value(answer)):
            return False, "one side is an equation, the other a value"
        gold, answer = _value(gold), _value(answer)
    if not verify(gold, answer, timeout_seconds=None):
        return False, None
    if not all(sides) or sides[0][0].lhs == sides[1][0].lhs:
        gold, answer = _value(gold), _value(answer)
    return (False, "equal to 15 digits, not to 60") if apart(gold, answer) else (True, None)


def _equations(expression: Any) -> list[Any]:
    """The links of an equation or of a chain a = b = c, in order; empty for all else."""
    if isinstance(expression, And):
        links = getattr(expression, "_unsorted_args", expression.args)
        return list(links) if all(isinstance(link, Eq) for link in links) else []
    return [expression] if isinstance(expression, Eq) else []


def _names_its_value(expression: Any) -> bool:
    """Whether only a name (x, AB, f(x)) or a sum of numbers stands before the first equals sign; true of what is no equation."""
    links = _equations(expression)
    if not links:
        return True
    left = links[0].lhs
    parts = left.args if isinstance(left, Mul) else (left,)
    return not left.free_symbols or all(isinstance(part, Symbol | AppliedUndef) for part in parts)


def _value(expression: Any) -> Any:
    """What stands behind the last equals sign, of each member of a set as well."""
    if isinstance(expression, FiniteSet) and any(map(_equations, expression.args)):
        return FiniteSet(*map(_value, expression.args))
    links = _equations(expression)
    return links[-1].rhs if links else expression


def math_verify(solution: str, completion: str) -> Verdict:
    """lm-evaluation-harness's metric of that name: Math-Verify as it comes, on the whole gold solution and the whole completion."""
    return bool(verify(gold=parse(solution), target=parse(completion))), None


def minerva(answer: str, gold: str) -> Verdict:
    """lm-evaluation-harness's equality of two normalised answers: the same text, or a difference that sympy simplifies to 0."""
    if answer and answer == gold:
        return True, None
    with _seconds(MINERVA_SECONDS):
        return bool(sympy.simplify(parse_latex(answer) - parse_latex(gold)) == 0), None


@contextmanager
def _seconds(limit: int) -> Iterator[None]:
    """TimeoutError in the block once `limit` seconds have passed."""

    def end(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
