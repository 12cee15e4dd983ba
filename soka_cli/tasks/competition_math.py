"""MATH: competition problems whose answers are LaTeX (Hendrycks et al., arXiv 2103.03874)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.base import Example, Judgement, cut_at, groups_of, text_column
from soka_cli.tasks.harness_math import minerva_equivalent, span_equivalent
from soka_cli.tasks.latex_answer import final_answer, last_box
from soka_cli.tasks.math_equivalence import equivalent
from soka_cli.tasks.metamath import phrased_equal
from soka_cli.tasks.symbolic import math_verify_equal, symbolic_equal

FORM = "MATH's form, with the fields problem, solution, level and type"


@dataclass(frozen=True)
class CompetitionMath:
    """Metrics on one extracted answer: `exact`, the authors' string equality, and `symbolic`, equality as mathematical objects.

    Readings: `metamath`, as MetaMath's scripts read; `hendrycks_math`, `minerva_math` and `math_verify`, as lm-evaluation-harness's
    tasks do (the last two are both of its task minerva_math).
    """

    name: str = "math"
    metrics: tuple[str, ...] = ("exact", "symbolic")
    readings: tuple[str, ...] = ("metamath", "hendrycks_math", "minerva_math", "math_verify")
    fields: tuple[str, ...] = ("problem", "solution")

    @property
    def specimen(self) -> Example:
        return _example("", {"problem": "{problem}", "solution": "{solution}"}, gold="", groups={})

    def example(self, row: dict[str, Any], index: int) -> Example:
        """`problem` and `solution` as the data set writes them; the gold answer stands in the solution's last box."""
        columns = {field: text_column(row, field, index, FORM) for field in self.fields}
        if (gold := last_box(columns["solution"])) is None:
            raise SokaError(
                f"Row {index} has no \\boxed{{}} in its solution, so there is no gold answer to compare with.",
                where=f"field solution of row {index}",
                hint="give a file in MATH's form: a solution whose last \\boxed{} holds the answer",
                exit_code=ExitCode.DATA,
            )
        return _example(str(row.get("id", index)), columns, gold=gold, groups=groups_of(row))

    def judge(self, completion: str, example: Example, stops: Sequence[str], readings: Sequence[str] = ()) -> Judgement:
        """exact, symbolic and metamath read the completion up to the first of `stops`, the harness's readings as given.

        math_verify compares with the whole solution where the example has one, else with the gold answer in a box; what it read
        stays in the judgement.
        """
        text, gold = cut_at(completion, stops)[0], example.gold
        answer = final_answer(text)
        same, why = symbolic_equal(gold, answer) if answer is not None else (False, "no answer found")
        correct = {"exact": answer is not None and equivalent(answer, gold), "symbolic": same}
        if "metamath" in readings:
            correct["metamath"] = phrased_equal(text, gold)
        if "hendrycks_math" in readings:
            correct["hendrycks_math"] = span_equivalent(completion, gold)
        if "minerva_math" in readings:
            correct["minerva_math"] = minerva_equivalent(completion, gold)
        details = {}
        if "math_verify" in readings:
            details = {"solution": example.target} if example.target else {}
            correct["math_verify"] = math_verify_equal(example.target or rf"$\boxed{{{gold}}}$", completion)[0]
        return Judgement(extracted=answer, correct=correct, why=why, details=details)


def _example(identity: str, columns: dict[str, str], *, gold: str, groups: dict[str, str]) -> Example:
    problem, solution = columns["problem"], columns["solution"]
    plain = (f"Problem:\n{problem}\n\nSolution:", f"\n{solution}")
    return Example(id=identity, prompt=problem, target=solution, gold=gold, plain=plain, columns=columns, groups=groups)
