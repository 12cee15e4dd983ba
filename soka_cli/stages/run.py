"""The whole pipeline: every stage in its order, each of which knows whether it is done already."""

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from soka_cli.run.aside import retire
from soka_cli.run.lock import RunLock
from soka_cli.run.manifest import Manifest
from soka_cli.run.write import read_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Cell, Outcome, Table

if TYPE_CHECKING:
    from soka_cli.stages.launch import Worker

TUNED = ("adapter", "merged")
KINDS = ("base", *TUNED)


def run(context: StageContext) -> Outcome:
    """Decompose (method soka), train, evaluate base and adapter, merge, evaluate the merged model, report.

    Among several processes the first one owns the run directory; the others share its decomposition, training and answers, and return
    `partial`.

    The benchmarks are read, and the sandbox for programs tried, before anything is computed, so that what is missing shows at once
    and not after the training.

    Raises:
        SokaError: whatever a stage raises; the stages before it stay done, and the same command goes on from there.
    """
    from soka_cli.stages.decompose import decompose
    from soka_cli.stages.evaluate import evaluate
    from soka_cli.stages.exam import prepare_exams
    from soka_cli.stages.execution import require_isolation
    from soka_cli.stages.launch import Worker
    from soka_cli.stages.merge import merge
    from soka_cli.stages.own_merge import UnmergeableError
    from soka_cli.stages.report import report
    from soka_cli.stages.train import train

    exams = prepare_exams(context.recipe, offline=context.offline) if context.recipe.eval else []
    require_isolation(exams, context)
    worker = Worker.here()
    if worker.rank:
        return help_run(context, worker, exams=bool(exams))
    outcomes: list[Outcome] = []

    def step(title: str, stage: Callable[..., Outcome], *arguments: Any) -> None:
        outcomes.append(stage(*arguments))
        context.reporter.say(f"{title}: {outcomes[-1].status}")

    with RunLock(context.layout.lock, context.command):
        if context.recipe.adapter.method == "soka":
            step("decompose", decompose, context)
        step("train", train, context)
        retire_outdated(context)
        if exams:
            step("evaluate the base", evaluate, context, ["base"])
            step("evaluate the adapter", evaluate, context, ["adapter"])
        with worker.leads("merge") as go:
            try:
                step("merge", merge, context)
            except UnmergeableError as error:
                context.reporter.warn(f"{error.what}: {error.why}")
            merged = bool(exams) and context.layout.merged_model.is_dir()  # method full leaves nothing to merge
            if merged:
                go()
        if merged:
            step("evaluate the merged model", evaluate, context, ["merged"])
        step("report", report, context)
    return outcome(context, outcomes, exams[0].prompts[0] if exams else "Hello")


def help_run(context: StageContext, worker: "Worker", *, exams: bool) -> Outcome:
    """Another process's share of the stages that are shared out, in the order in which the first one comes to them."""
    from soka_cli.stages.decompose import decompose
    from soka_cli.stages.evaluate import SITTING, evaluate
    from soka_cli.stages.train import train

    if context.recipe.adapter.method == "soka":
        decompose(context)
    train(context)
    for kind in ("base", "adapter") if exams else ():
        evaluate(context, [kind])
    if worker.may_begin("merge", SITTING):
        evaluate(context, ["merged"])
    return Outcome("run", "partial", context.layout.root)


def retire_outdated(context: StageContext) -> None:
    """Set aside what was made of an earlier adapter: the user asked for more training, and so for its results anew."""
    layout = context.layout
    stages = Manifest.read(layout.manifest).stages
    trained = stages["train"].finished or ""
    followers = {f"eval/{entry.folder}-{kind}": layout.evaluation(entry.folder, kind) for entry in context.recipe.eval for kind in TUNED}
    for name, folder in {"merge": layout.merge, **followers}.items():
        if name in stages and stages[name].started < trained:
            moved = retire(layout, name, [folder])
            context.reporter.say(f"{name}: made of an earlier adapter, kept in {moved}")


def outcome(context: StageContext, outcomes: list[Outcome], prompt: str) -> Outcome:
    """The scores side by side, and where to look; `prompt` is one to try the adapter with."""
    layout = context.layout
    scores = read_scores(context)
    agreement: dict[str, Any] = next((one.figures["agreement"] for one in reversed(outcomes) if "agreement" in one.figures), {})
    contamination: dict[str, Any] | None = next((found for one in reversed(outcomes) if (found := one.figures.get("contamination"))), None)
    done_before = all(one.status == "already done" for one in outcomes)
    return Outcome(
        stage="run",
        status="already done" if done_before else "done",
        run=layout.root,
        figures={
            "stages": [{"stage": one.stage, "status": one.status} for one in outcomes],
            "scores": [one for kinds in scores.values() for one in kinds.values()],
            "agreement": agreement,
            "contamination": contamination,
            "training": next(one.figures for one in outcomes if one.stage == "train"),
            "report": str(layout.report_page),
        },
        tables=(scores_table(scores),) if scores else (),
        notes=(*agreement_notes(agreement), *overlap_notes(contamination), *unasked(context), f"report: {layout.report_page}"),
        next_commands=(f"soka eval --run {shlex.quote(str(layout.root))} --show 2", generate_command(context, prompt)),
    )


def generate_command(context: StageContext, prompt: str) -> str:
    """A command that a shell takes as it is, line breaks in the prompt included."""
    text = prompt.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"soka generate --run {shlex.quote(str(context.layout.root))} --prompt $'{text}'"


def read_scores(context: StageContext) -> dict[str, dict[str, Any]]:
    """Each benchmark's scores.json by the kind of model, those that are there."""
    return {
        entry.folder: {kind: read_json(path) for kind in KINDS if (path := context.layout.scores(entry.folder, kind)).is_file()}
        for entry in context.recipe.eval
    }


def scores_table(scores: dict[str, dict[str, Any]]) -> Table:
    """A row for each benchmark and metric, a column for each model; values with their standard errors over items."""
    rows = tuple(
        (name, metric, *(figure(kinds.get(kind), metric) for kind in KINDS))
        for name, kinds in scores.items()
        for metric in dict.fromkeys(metric for one in kinds.values() for metric in one["metrics"])
    )
    return Table("Scores", ("benchmark", "metric", *KINDS), rows)


def figure(scores: dict[str, Any] | None, metric: str) -> Cell:
    """`0.985 +- 0.009`; the value alone where one item has no spread."""
    if scores is None or metric not in scores["metrics"]:
        return None
    value, stderr = (scores["metrics"][metric][part] for part in ("value", "stderr"))
    return f"{value:.3f}" if stderr is None else f"{value:.3f} +- {stderr:.3f}"


def agreement_notes(agreement: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{name}: merged and adapter write the same in {one['equal']} of {one['items']} items"
        + (f", {one['near_ties']} of the others are near-ties" if one["equal"] < one["items"] else "")
        for name, one in agreement.items()
    )


def overlap_notes(contamination: dict[str, Any] | None) -> tuple[str, ...]:
    return tuple(
        f"{one['name']}: training rows hold 13 words in a row of {one['overlapping']} of {one['items']} items, "
        f"half the problem or more of {one['near']}, a whole one of {one['whole']}"
        for one in (contamination or {}).get("evaluations", ())
        if one["overlapping"]
    )


def unasked(context: StageContext) -> tuple[str, ...]:
    return () if context.recipe.eval else ("the recipe names no benchmark under eval, so nothing was scored",)
