"""Running model-written programs as part of a stage: whether it may be done here, and how it was done."""

import platform
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from soka_cli.sandbox import describe, find_isolation, no_isolation
from soka_cli.stages.context import StageContext
from soka_cli.tasks.base import Task
from soka_cli.tasks.code_task import TIMEOUT, CodeTask

if TYPE_CHECKING:
    from soka_cli.stages.exam import Exam


def require_isolation(exams: Sequence["Exam"], context: StageContext) -> None:
    """Say what isolates the programs of the exams, if some ask for programs; a command of several stages hears it once.

    Raises:
        SokaError: exit 3, nothing isolates them and nobody insists.
    """
    if any(isinstance(exam.task, CodeTask) for exam in exams):
        if find_isolation().layer is None and not context.unsafe_execution:
            raise no_isolation()
        tell(context.reporter.say, describe(unsafe=context.unsafe_execution))


@cache
def tell(say: Callable[[str], None], lines: tuple[str, ...]) -> None:
    """Say lines to whom they have not been said yet."""
    for line in lines:
        say(line)


def execution(task: Task, rows: Sequence[dict[str, Any]], unsafe: bool) -> dict[str, Any]:
    """`execution` of scores.json: how the programs of prediction rows were run; nothing for a task without programs.

    `in_process` counts verdicts that a program could have forged, because its tests had to run beside it.
    """
    if not isinstance(task, CodeTask):
        return {}
    verdicts = [row.get("verdict") for row in rows]
    return {
        "execution": {
            "layer": find_isolation().name,
            "unsafe": unsafe and find_isolation().layer is None,
            "python": platform.python_version(),
            "timeout_s": TIMEOUT,
            "verdicts": {name: verdicts.count(name) for name in ("pass", "fail", "timeout")},
            "in_process": sum(row.get("mode") == "in-process" for row in rows),
        }
    }
