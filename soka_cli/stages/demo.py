"""The demo: the whole pipeline on the packaged model, and what it changed in words."""

from dataclasses import replace
from typing import Any

from soka_cli.run.lines import read_lines
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Outcome, Table
from soka_cli.stages.run import read_scores, run

EXAMPLES = 2
HONEST = (
    "this shows the pipeline at work, not one method's lead over another: training and test problems share their ten templates, "
    "with other numbers"
)


def demo(context: StageContext) -> Outcome:
    """Run the packaged recipe, then show scores before and after, two answers of base and adapter, and where to go from there.

    Raises:
        SokaError: whatever a stage raises.
    """
    ran = run(context)
    said = ("every stage was done before, so nothing was computed again",) if ran.status == "already done" else ()
    examples = example_answers(context)
    return replace(
        ran,
        stage="demo",
        figures={**ran.figures, **before_and_after(context), "examples": examples},
        tables=(*ran.tables, *(answer_table(example) for example in examples)),
        notes=(*said, *ran.notes, HONEST),
        next_commands=(*ran.next_commands, "soka recipes", "soka plan --recipe gsm8k.yaml"),
    )


def before_and_after(context: StageContext) -> dict[str, float]:
    """The share of items that base and adapter answer right by the first benchmark's first metric."""
    scores = next(iter(read_scores(context).values()), {})
    shares = {name: scores[kind] for name, kind in (("before", "base"), ("after", "adapter")) if kind in scores}
    return {name: next(iter(one["metrics"].values()))["value"] for name, one in shares.items()}


def example_answers(context: StageContext) -> list[dict[str, Any]]:
    """Items that the adapter answers right and the base does not, as far as there are such, else the first ones."""
    from soka_cli.stages.exam import prepare_exams

    if not context.recipe.eval:
        return []
    exam = prepare_exams(context.recipe, offline=context.offline)[0]
    base, adapter = (
        {row["id"]: row for row in read_lines(context.layout.predictions(exam.name, kind)) if row["sample"] == 0}
        for kind in ("base", "adapter")
    )
    headline = exam.task.metrics[0]
    shared = [example for example in exam.examples if example.id in base and example.id in adapter]
    learnt = [example for example in shared if adapter[example.id]["correct"][headline] and not base[example.id]["correct"][headline]]
    others = [example for example in shared if example not in learnt]
    return [
        {
            "question": example.prompt,
            "gold": example.gold,
            "base": base[example.id]["completion"],
            "adapter": adapter[example.id]["completion"],
        }
        for example in (learnt + others)[:EXAMPLES]
    ]


def answer_table(example: dict[str, Any]) -> Table:
    """One question, answered by both, and what is right."""
    rows = (("base", example["base"].strip()), ("adapter", example["adapter"].strip()), ("right", example["gold"]))
    return Table(example["question"], ("who", "answer"), rows)
