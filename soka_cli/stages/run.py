"""The whole pipeline: every stage in its order, each of which knows whether it is done already."""

from dataclasses import replace
from typing import Any

from soka_cli.run.lock import RunLock
from soka_cli.run.write import read_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Cell, Outcome, Table

KINDS = ("base", "adapter", "merged")


def run(context: StageContext) -> Outcome:
    """Decompose (method soka), train, evaluate base and adapter, merge, evaluate the merged model, report.

    The benchmarks are read before anything is computed, so that a missing file or task shows at once and not after the training.

    Raises:
        SokaError: whatever a stage raises; the stages before it stay done, and the same command goes on from there.
    """
    from soka_cli.stages.decompose import decompose
    from soka_cli.stages.evaluate import evaluate
    from soka_cli.stages.exam import prepare_exams
    from soka_cli.stages.merge import merge
    from soka_cli.stages.report import report
    from soka_cli.stages.train import train

    asked = bool(context.recipe.eval)
    if asked:
        prepare_exams(context.recipe, offline=context.offline)
    outcomes: list[Outcome] = []
    with RunLock(context.layout.lock, context.command):
        if context.recipe.adapter.method == "soka":
            outcomes.append(decompose(context))
        outcomes.append(train(context))
        after = follow(context, outcomes)
        if asked:
            outcomes += [evaluate(context, ["base"]), evaluate(after, ["adapter"])]
        outcomes.append(merge(after))
        if asked and context.layout.merged_model.is_dir():  # method full leaves nothing to merge
            outcomes.append(evaluate(after, ["merged"]))
        outcomes.append(report(after))
    return outcome(context, outcomes)


def follow(context: StageContext, outcomes: list[Outcome]) -> StageContext:
    """The context of the stages behind training: those of an earlier adapter are set aside where this run made a new one."""
    return replace(context, force=context.force or outcomes[-1].status == "done")


def outcome(context: StageContext, outcomes: list[Outcome]) -> Outcome:
    """The scores side by side, and where to look."""
    layout = context.layout
    scores = read_scores(context)
    agreement: dict[str, Any] = next((one.figures["agreement"] for one in reversed(outcomes) if "agreement" in one.figures), {})
    done_before = all(one.status == "already done" for one in outcomes)
    return Outcome(
        stage="run",
        status="already done" if done_before else "done",
        run=layout.root,
        figures={
            "stages": [{"stage": one.stage, "status": one.status} for one in outcomes],
            "scores": [one for kinds in scores.values() for one in kinds.values()],
            "agreement": agreement,
            "training": next(one.figures for one in outcomes if one.stage == "train"),
            "report": str(layout.report_page),
        },
        tables=(scores_table(scores),) if scores else (),
        notes=(*agreement_notes(agreement), *unasked(context), f"report: {layout.report_page}"),
        next_commands=(f"soka eval --run {layout.root} --show 2", f"soka generate --run {layout.root} --prompt 'Question: ...'"),
    )


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


def unasked(context: StageContext) -> tuple[str, ...]:
    return () if context.recipe.eval else ("the recipe names no benchmark under eval, so nothing was scored",)
