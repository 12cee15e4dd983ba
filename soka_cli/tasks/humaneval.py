"""HumanEval: functions to be completed from signature and docstring (Chen et al., arXiv 2107.03374)."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soka_cli.tasks.base import Example
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.exercise import Exercise, checked, damaged, text_of
from soka_cli.tasks.program import Postprocessing, cut_program, defines, parsed


@dataclass(frozen=True)
class HumanEval(CodeTask):
    """A completion goes on where the prompt ends, or brings the whole function."""

    name: str = "humaneval"
    fields: tuple[str, ...] = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    gold_fields: tuple[str, ...] = ("prompt", "entry_point", "test")

    @property
    def specimen(self) -> Example:
        return _example("", "{prompt}", "{canonical_solution}", gold="")

    def example(self, row: dict[str, Any], index: int) -> Example:
        """`prompt` and `canonical_solution` as the data set writes them."""
        where = f"row {index}, task_id {row.get('task_id')}"
        prompt, solution = (text_of(row, column, where) for column in ("prompt", "canonical_solution"))
        return _example(str(row.get("task_id", index)), prompt, solution, gold=self.exercise(row, where).to_text())

    def exercise(self, row: Mapping[str, Any], where: str) -> Exercise:
        """`test` defines `check`, which is called with the function. Helpers that the prompt defines are the tests' own to use."""
        prompt, entry_point, test = (text_of(row, column, where) for column in self.gold_fields)
        if not entry_point.isidentifier():
            raise damaged("has no name of a function in field entry_point", where)
        call = f"{test.rstrip()}\n\ncheck({entry_point})\n"
        return checked(Exercise((call,), setup=helpers(prompt, entry_point), prompt=prompt, entry_point=entry_point), where)

    def program(self, completion: str, exercise: Exercise, how: Postprocessing) -> str:
        """The prompt and what follows. A completion that brings the whole function leaves the prompt's imports and helpers in place,
        and its unfinished function, which the whole one replaces."""
        prompt = exercise.prompt
        if how == "none":
            return prompt + completion
        cut = cut_program(completion, how, exercise.wanted)
        if defines(cut, exercise.entry_point):
            return f"{prompt}\n{cut}"
        if how in ("evalplus", "span"):
            return cut_program(f"{prompt}\n{completion}", how, exercise.wanted)
        return prompt + cut


def helpers(prompt: str, entry_point: str) -> str:
    """What a prompt defines beside the function that is asked for; nothing where it is no Python up to its docstring's end."""
    tree = parsed(prompt)
    if tree is None:
        return ""
    kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return ast.unparse(ast.Module(kept, []))


def _example(identity: str, prompt: str, solution: str, *, gold: str) -> Example:
    """plain goes on from the prompt; otherwise the question is to complete it, and the answer is the whole function."""
    return Example(
        id=identity,
        prompt=f"Complete the following Python function:\n\n{prompt}",
        target=prompt + solution,
        gold=gold,
        problem=prompt,
        plain=(prompt, solution),
        columns={"prompt": prompt, "canonical_solution": solution},
    )
