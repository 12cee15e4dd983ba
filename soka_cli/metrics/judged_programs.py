"""What the metric module of programs is made of: candidates and their tests in, pass@k and standard errors out."""

from collections.abc import Sequence

from soka_cli.sandbox import Program, judge_all
from soka_cli.tasks.mean import mean, standard_error
from soka_cli.tasks.pass_at_k import pass_at_k

INPUTS = """
Args:
    predictions: for each problem a list of candidate programs.
    references: for each problem the Python text that tests a candidate.
    k: the k of each pass@k; no problem may have fewer candidates.
    timeout: seconds of wall clock a candidate.
    unsafe: whether candidates run even where nothing isolates them.

Returns:
    {pass@k: value, pass@k_stderr: standard error over the problems, or None for a single one}
"""


def pass_values(
    predictions: Sequence[Sequence[str]], references: Sequence[str], k: Sequence[int], timeout: float, unsafe: bool
) -> dict[str, float | None]:
    """pass@k for each k of the candidates of each problem; SokaError for a k beyond their number (exit 2) or no isolation (exit 3)."""
    for one in k:
        pass_at_k(min(map(len, predictions)), 0, one)
    programs = [Program(code, (test,), timeout=timeout) for codes, test in zip(predictions, references, strict=True) for code in codes]
    marks = iter([verdict.passed for verdict in judge_all(programs, unsafe=unsafe)])
    right = [sum(next(marks) for _ in codes) for codes in predictions]
    found: dict[str, float | None] = {}
    for one in k:
        shares = [pass_at_k(len(codes), count, one) for codes, count in zip(predictions, right, strict=True)]
        found |= {f"pass@{one}": mean(shares), f"pass@{one}_stderr": standard_error(shares)}
    return found
