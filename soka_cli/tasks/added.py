"""Benchmarks that a program of one's own brings along (docs/extending.md)."""

from soka_cli.recipe.schema import PROGRAM_TASKS, TASK_PROTOCOLS, TRAINING_TASKS
from soka_cli.tasks.base import ADDED, Task
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.protocol import ADDED_PROTOCOLS, AskingProtocol


def add_task(task: Task, *protocols: AskingProtocol) -> None:
    """From now on recipes may name the task under `eval` and `data.train`, with these protocols; in this process alone.

    Raises:
        ValueError: the task's name is taken, or there is no protocol, or one of another task.
    """
    if task.name in TASK_PROTOCOLS:
        raise ValueError(f"there is a task {task.name} already")
    if not protocols:
        raise ValueError(f"task {task.name} needs a protocol, which says how it is asked")
    if strange := [protocol.name for protocol in protocols if protocol.task != task.name]:
        raise ValueError(f"protocol {strange[0]} is not of task {task.name}")
    ADDED[task.name] = task
    ADDED_PROTOCOLS.update({(protocol.name, task.name): protocol for protocol in protocols})
    TASK_PROTOCOLS[task.name] = tuple(protocol.name for protocol in protocols)
    TRAINING_TASKS.append(task.name)
    if isinstance(task, CodeTask):
        PROGRAM_TASKS.append(task.name)
