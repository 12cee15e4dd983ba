"""How far a run of a sweep has come, by its own directory and on the inputs of today."""

from typing import Literal

from soka_cli.recipe.resolved import to_yaml
from soka_cli.run.digest import json_digest
from soka_cli.run.lines import read_lines
from soka_cli.run.manifest import Manifest
from soka_cli.run.stage import stage_is_done
from soka_cli.stages.context import StageContext
from soka_cli.stages.train import STAGE, train_inputs


def is_done(context: StageContext, stages: Literal["train", "eval", "run"]) -> bool:
    """Whether all of these stages are done."""
    layout = context.layout
    known = Manifest.read(layout.manifest).stages
    if STAGE not in known or not stage_is_done(layout, STAGE, train_inputs(context)):
        return False
    after = {"train": [], "eval": [f"eval/{entry.folder}-adapter" for entry in context.recipe.eval], "run": ["report"]}[stages]
    same = not after or layout.recipe.read_text(encoding="utf-8") == to_yaml(context.recipe)
    return same and all(name in known and known[name].status == "done" for name in after)


def has_passed(context: StageContext, steps: int) -> bool:
    """Whether this run, which is to become longer, is behind so many steps already."""
    layout = context.layout
    record = Manifest.read(layout.manifest).stages.get(STAGE)
    if record is None or record.inputs_sha256 != json_digest(train_inputs(context)) or not layout.metrics.is_file():
        return False
    return any(row["step"] >= steps for row in read_lines(layout.metrics))


def failed_before(context: StageContext) -> str | None:
    """The error with which training failed, None where it did not."""
    record = Manifest.read(context.layout.manifest).stages.get(STAGE)
    if record is None or record.status != "failed" or record.inputs_sha256 != json_digest(train_inputs(context)):
        return None
    return record.error
