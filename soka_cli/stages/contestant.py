"""One run as a comparison sees it: what it was given, its curves, its scores and what it cost."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.schema import Recipe
from soka_cli.run.digest import json_digest
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.run.manifest import StageRecord
from soka_cli.run.stage import recorded_recipe
from soka_cli.run.write import read_json
from soka_cli.stages.findings import Environment, Findings, Metric, find, held_out_curve
from soka_cli.stages.scores import check_predictions, share

SMOOTHING = 10  # logged training steps whose losses are averaged
ASKED = ("task", "protocol", "protocol_sha256", "template_sha256", "data_sha256", "shots_sha256")  # of scores.json
MACHINERY = ("backend", "dtype")  # of its decoding
TUNED = ("adapter", "merged")

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Evaluation:
    """One benchmark as it was asked of one model of a run.

    Attributes:
        asked: what has to be the same for figures to stand in one column.
        predictions: the file of its answers.
    """

    name: str
    kind: str
    asked: dict[str, Any]
    metrics: dict[str, Metric]
    items: int
    predictions: Path

    @property
    def key(self) -> str:
        return json_digest(self.asked)

    def shares(self, metric: str) -> dict[str, float]:
        """Share of right samples by item."""
        rows = read_lines(self.predictions)
        known = [name for name in self.metrics if rows and name in rows[0].get("correct", {})]
        check_predictions(rows, self.predictions, known)
        items: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            items.setdefault(row["id"], []).append(row)
        return {item: share(metric, samples) for item, samples in items.items()}


@dataclass(frozen=True)
class Contestant:
    """A run directory that was trained.

    Attributes:
        name: how tables call it.
        record: the train stage's.
        trials: learning rates that were tried of this very configuration, where a sweep tells.
    """

    name: str
    root: Path
    recipe: Recipe
    findings: Findings
    record: StageRecord
    evaluations: tuple[Evaluation, ...]
    trials: tuple[float, ...] = ()

    @property
    def inputs(self) -> dict[str, Any]:
        return self.record.inputs

    @property
    def configuration(self) -> str:
        """What it has in common with runs of other seeds, by digest."""
        return json_digest({name: value for name, value in self.inputs.items() if name != "seed"})

    @property
    def name_without_seed(self) -> str:
        return self.name.replace(f"-seed{self.recipe.seed}", "")

    @property
    def parameters(self) -> int | None:
        return self.findings.trainable_parameters

    @property
    def environment(self) -> Environment | None:
        return self.findings.environments.get("train")

    @property
    def seconds(self) -> float:
        return self.record.seconds

    @property
    def memory_bytes(self) -> int | None:
        return max((step.memory_bytes for step in self.findings.steps if step.memory_bytes is not None), default=None)

    @property
    def tokens(self) -> int | None:
        return self.findings.steps[-1].tokens if self.findings.steps else None

    def evaluation(self, key: str, kinds: Sequence[str] = TUNED) -> Evaluation | None:
        """What was asked in this way of the first of these kinds."""
        found = {one.kind: one for one in reversed(self.evaluations) if one.key == key}
        return next((found[kind] for kind in kinds if kind in found), None)

    def held_out(self) -> Curve:
        """(step, loss on held-out rows); that of the untrained start at step 0."""
        return [(float(step), loss) for step, loss in held_out_curve(self.findings.steps)]

    def training_loss(self) -> Curve:
        """(step, mean loss of the last logged steps up to it)."""
        steps = self.findings.steps
        recent = [steps[max(0, end - SMOOTHING) : end] for end in range(1, len(steps) + 1)]
        return [(float(some[-1].step), sum(one.loss for one in some) / len(some)) for some in recent]

    def by_tokens(self, curve: Curve) -> Curve:
        """A curve over steps as one over tokens read."""
        tokens = {0.0: 0.0} | {float(one.step): float(one.tokens) for one in self.findings.steps if one.tokens is not None}
        return [(tokens[step], loss) for step, loss in curve if step in tokens]


def value_at(curve: Curve, place: float) -> float | None:
    """The curve's value there, on the straight line between its neighbours; None outside of it."""
    places = [x for x, _ in curve]
    if not curve or not places[0] <= place <= places[-1]:
        return None
    after = bisect_left(places, place)
    (right, high) = curve[after]
    if right == place:
        return high
    left, low = curve[after - 1]
    return low + (high - low) * (place - left) / (right - left)


def contestant(root: Path) -> Contestant:
    """Read a run directory.

    Raises:
        SokaError: exit 5, it is no run, was not trained, or is damaged.
    """
    layout = RunLayout(root)
    recipe = load_recipe(recorded_recipe(layout)).recipe
    findings = find(layout, recipe)
    record = findings.stages.get("train")
    if record is None or not findings.steps:
        raise SokaError(
            f"{root} was not trained yet",
            where=str(root),
            why="a comparison is about what training did",
            hint=f"soka train --run {root}",
            exit_code=ExitCode.RUN,
        )
    evaluations = tuple(
        Evaluation(
            score.name,
            score.kind,
            asked_of(layout.scores(score.name, score.kind)),
            score.scores.metrics,
            score.scores.items,
            layout.predictions(score.name, score.kind),
        )
        for score in findings.scores
    )
    return Contestant(root.name, root, recipe, findings, record, evaluations)


def asked_of(path: Path) -> dict[str, Any]:
    """What a scores.json says of how its benchmark was asked; which program answered is no part of it."""
    scores = read_json(path)
    decoding = {name: value for name, value in (scores.get("decoding") or {}).items() if name not in MACHINERY}
    return {name: scores.get(name) for name in ASKED} | {"decoding": decoding}


def contestants(roots: Sequence[Path]) -> list[Contestant]:
    """Every run, under names that differ."""
    found = [contestant(root) for root in roots]
    names = [one.name for one in found]
    if len(set(names)) == len(names):
        return found
    return [replace(one, name=str(one.root)) for one in found]
