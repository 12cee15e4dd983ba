"""What the metric modules of tasks with a gold text share: completions and gold answers in, values and standard errors out."""

from collections.abc import Sequence

from soka_cli.tasks.base import Example, task_named
from soka_cli.tasks.mean import mean, standard_error
from soka_cli.tasks.protocol import protocol_named, stops_of

INPUTS = """
Args:
    predictions: completions, as the model wrote them.
    references: gold answers, bare.
    protocol: name of the protocol whose stop strings cut and whose readings count as well; None takes the common stop strings.

Returns:
    {metric: value, metric_stderr: standard error over the items, or None for a single one}
"""


def values(task_name: str, predictions: Sequence[str], references: Sequence[str], protocol: str | None) -> dict[str, float | None]:
    """Every metric of the task on pairs of completion and gold answer, with its standard error."""
    task, stops = task_named(task_name), stops_of(protocol, task_name)
    readings = protocol_named(protocol, task_name).readings if protocol is not None else ()
    golds = (Example(id="", prompt="", target="", gold=gold) for gold in references)
    judged = [task.judge(text, gold, stops, readings).correct for text, gold in zip(predictions, golds, strict=True)]
    found: dict[str, float | None] = {}
    for metric in (*task.metrics, *readings):
        shares = [float(correct[metric]) for correct in judged]
        found |= {metric: mean(shares), f"{metric}_stderr": standard_error(shares)}
    return found
