"""MBPP: short Python problems with a few asserts each (Austin et al., arXiv 2108.07732), full and sanitized."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soka_cli.tasks.base import Example
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.exercise import Exercise, checked, text_of, texts_of
from soka_cli.tasks.program import Postprocessing, cut_program

SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
"""Upstream's split of a file by `task_id`."""

SHOWN = 3  # tests that prompts name by their place; a problem with fewer leaves lines empty, as the harness does


@dataclass(frozen=True)
class Mbpp(CodeTask):
    """The problem is `text` in the full data set and `prompt` in the sanitized one."""

    name: str = "mbpp"
    fields: tuple[str, ...] = ("task_id", "code", "test_list")
    gold_fields: tuple[str, ...] = ("test_list",)

    @property
    def specimen(self) -> Example:
        return _example("", "{text}", "{code}", ("{test_list}",), gold="")

    def example(self, row: dict[str, Any], index: int) -> Example:
        """The problem with its tests, which name the function; Windows line ends of the program become plain ones in the target."""
        where = f"row {index}, task_id {row.get('task_id')}"
        problem = text_of(row, "text" if "text" in row else "prompt", where)
        code, tests = text_of(row, "code", where), texts_of(row, "test_list", where)
        gold = self.exercise(row, where).to_text()
        return _example(str(row.get("task_id", index)), problem, code, tests, gold=gold)

    def exercise(self, row: Mapping[str, Any], where: str) -> Exercise:
        """`test_list`, and `test_setup_code` or `test_imports` where the row has them."""
        setup = [text_of(row, "test_setup_code", where, absent=""), *texts_of(row, "test_imports", where, absent=())]
        return checked(Exercise(texts_of(row, "test_list", where), setup="\n".join(filter(None, setup))), where)

    def program(self, completion: str, exercise: Exercise, how: Postprocessing) -> str:
        return cut_program(completion, how, exercise.wanted)


def _example(identity: str, problem: str, code: str, tests: tuple[str, ...], *, gold: str) -> Example:
    """plain is the paper's own form without shots; otherwise the problem and all its tests are the question."""
    listed, target = "\n".join(tests), code.replace("\r\n", "\n")
    asked = (
        f"You are an expert Python programmer, and here is your task: {problem} Your code should pass these tests:\n\n{listed}\n[BEGIN]\n"
    )
    return Example(
        id=identity,
        prompt=f"{problem}\nYour code should pass these tests:\n\n{listed}",
        target=target,
        gold=gold,
        problem=problem,
        plain=(asked, f"{target}\n[DONE]"),
        columns={"text": problem, "code": code, "test_list": [*tests, *[""] * (SHOWN - len(tests))]},
    )
