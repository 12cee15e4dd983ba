"""What a run directory says about its run, read and checked file by file; what is not there is named."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soka_cli.recipe.schema import Recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.run.manifest import Manifest, StageRecord
from soka_cli.run.write import damaged, read_json
from soka_cli.stages.agreement import agreement
from soka_cli.stages.scores import check_predictions, judged_metrics

KINDS = ("base", "adapter", "merged")


class Written(BaseModel):
    """A part of a file that another stage wrote: further fields are its own matter, NaN is damage."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModuleRow(Written):
    """One module of layers.json."""

    name: str
    out_features: int
    in_features: int
    m: int
    n: int
    p: int
    q: int
    rank: int
    rank_energy: int | None
    rank_elbow: int | None
    rank_bound_by: str
    energy_kept: float
    total_energy: float
    weight_energy: float | None = None
    relative_error: float
    sigma_error_bound: float
    parameters: int


class LayerTotals(Written):
    modules: int
    parameters: int
    components: int
    seconds: float


class Layers(Written):
    """layers.json."""

    modules: list[ModuleRow]
    totals: LayerTotals
    without_terms: list[str] = []
    warnings: list[str] = []

    @property
    def unresolved(self) -> list[str]:
        """The modules whose rank the error bounds leave open."""
        return [module.name for module in self.modules if module.rank_bound_by == "unresolved"]


class Step(Written):
    """One line of metrics.jsonl."""

    step: int
    loss: float
    lr: float
    grad_norm: float | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    memory_bytes: int | None = None
    eval_loss: float | None = None
    eval_loss_before: float | None = None


def held_out_curve(steps: Sequence[Step]) -> list[tuple[int, float]]:
    """(step, loss on the held-out rows), that of the untrained start at step 0."""
    before = [(0, step.eval_loss_before) for step in steps if step.eval_loss_before is not None]
    return before + [(step.step, step.eval_loss) for step in steps if step.eval_loss is not None]


class Metric(Written):
    value: float
    stderr: float | None


class ScoresOf(Written):
    """The scores of some of an evaluation's items: a subject's, a level's, those without overlap."""

    items: int
    metrics: dict[str, Metric]


class Scores(Written):
    """scores.json."""

    task: str
    protocol: str | None
    n: int
    items: int
    metrics: dict[str, Metric]
    groups: dict[str, dict[str, ScoresOf]] = {}
    seconds: float | None = None
    tokens_per_s: float | None = None


class Parity(Written):
    """parity.json."""

    max_abs_weight_error: float
    max_abs_logit_error: float | None
    top1_agreement: float | None
    dtype: str


class LedgerRow(Written):
    """What became of a set of rows, as train.json has it."""

    read: int
    used: int
    truncated: int
    tokens: int
    supervised_tokens: int
    longest: int
    dropped: dict[str, int]
    dropped_rows: dict[str, list[int]]
    truncated_rows: list[int]
    path: str | None = None
    sources: list["LedgerRow"] = []


class TrainedRows(Written):
    rows: int
    dropped: int | None
    overlapping: int


class OverlapOf(Written):
    """One evaluation in contamination.json; `scores` by model and set of items, None where the set is empty."""

    name: str
    items: int
    overlapping: int
    share: float
    in_problem: int
    in_solution: int
    near: int
    whole: int
    scores: dict[str, dict[str, ScoresOf | None]]


class Contamination(Written):
    """contamination.json."""

    definition: str
    words: int
    training: TrainedRows
    validation: TrainedRows | None = None
    evaluations: list[OverlapOf]


class Environment(Written):
    """env/<stage>.json, the parts that are shown."""

    soka: str
    python: str
    platform: str
    machine: str | None = None
    processors: int | None = None
    memory_bytes: int | None = None
    packages: dict[str, str | None] = {}
    device: str | None = None
    training: dict[str, Any] | None = None
    data: dict[str, Annotated[LedgerRow | dict[str, Any], Field(union_mode="left_to_right")]] | None = None


@dataclass(frozen=True)
class Score:
    """One evaluation: the recipe's entry, which model was asked, and how it did."""

    name: str
    kind: str
    scores: Scores


@dataclass(frozen=True)
class Findings:
    """Everything that the report shows of one run; a part that the run does not have is None or empty and named in `missing`."""

    layers: Layers | None
    spectra: dict[str, list[float]]
    steps: tuple[Step, ...]
    scores: tuple[Score, ...]
    agreements: dict[str, dict[str, Any]]
    contamination: Contamination | None
    parity: Parity | None
    stages: dict[str, StageRecord]
    environments: dict[str, Environment]
    missing: tuple[str, ...]

    @property
    def training(self) -> dict[str, Any]:
        """Figures that the train stage recorded; empty before it is done."""
        environment = self.environments.get("train")
        return (environment.training if environment else None) or {}

    @property
    def ledgers(self) -> dict[str, dict[str, Any]]:
        """What the train stage recorded of its rows, by what they were read for; empty before it is done."""
        environment = self.environments.get("train")
        data = (environment.data if environment else None) or {}
        return {name: ledger.model_dump() for name, ledger in data.items() if isinstance(ledger, LedgerRow)}

    @property
    def trainable_parameters(self) -> int | None:
        """What was trained; before training, what the decomposition gives."""
        found = self.training.get("trainable_parameters")
        return found if isinstance(found, int) else self.layers.totals.parameters if self.layers else None


def find(layout: RunLayout, recipe: Recipe) -> Findings:
    """Read a run directory.

    Raises:
        SokaError: exit 5, naming the first damaged file.
    """
    stages = {name: record for name, record in Manifest.read(layout.manifest).stages.items() if name != "report"}
    layers = read_as(layout.layers, Layers) if layout.layers.is_file() else None
    environments = {name: layout.environment(name) for name in stages}
    scores = tuple(_scores(layout, recipe))
    return Findings(
        layers=layers,
        spectra=_spectra(layout.spectra, layers) if layers is not None and layout.spectra.is_file() else {},
        steps=_steps(layout.metrics) if layout.metrics.is_file() else (),
        scores=scores,
        agreements=_agreements(layout, scores),
        contamination=read_as(layout.contamination, Contamination) if layout.contamination.is_file() else None,
        parity=read_as(layout.parity, Parity) if layout.parity.is_file() else None,
        stages=stages,
        environments={name: read_as(path, Environment) for name, path in environments.items() if path.is_file()},
        missing=tuple(_missing(layout, recipe, stages, scores)),
    )


def files_read(layout: RunLayout, recipe: Recipe) -> list[Path]:
    """The files that `find` and the learnt spectra read, those that there are; the manifest, which the report itself writes, is none."""
    single = [layout.layers, layout.spectra, layout.metrics, layout.adapter_weights, layout.contamination, layout.parity]
    stages = [name for name in Manifest.read(layout.manifest).stages if name != "report"]
    environments = [layout.environment(name) for name in stages]
    evaluations = [
        path for name, kind in _evaluations(layout, recipe) for path in (layout.scores(name, kind), layout.predictions(name, kind))
    ]
    return [path for path in (*single, *environments, *evaluations) if path.is_file()]


Content = TypeVar("Content", bound=Written)


def read_as(path: Path, content: type[Content]) -> Content:
    """A JSON file as its writer left it; SokaError (exit 5) naming the file and the first field that is not."""
    return _checked(read_json(path), content, path)


def _checked(value: Any, content: type[Content], path: Path, place: str = "") -> Content:
    try:
        return content.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise damaged(path, f"{place}{where}: {first['msg']}") from error


def _steps(path: Path) -> tuple[Step, ...]:
    return tuple(_checked(row, Step, path, f"line {number}: ") for number, row in enumerate(read_lines(path), start=1))


def _spectra(path: Path, layers: Layers) -> dict[str, list[float]]:
    """Singular values by module, in the order of layers.json."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from error
    if absent := [module.name for module in layers.modules if module.name not in tensors]:
        raise damaged(path, f"it has no {absent[0]}, which {layers.totals.modules} modules of layers.json name")
    return {module.name: tensors[module.name].tolist() for module in layers.modules}


def _evaluations(layout: RunLayout, recipe: Recipe) -> list[tuple[str, str]]:
    """(name, kind) of the recipe's evaluations in its order, then of others that are there."""
    expected = [(entry.folder, kind) for entry in recipe.eval for kind in KINDS]
    folders = sorted(layout.evaluations.iterdir()) if layout.evaluations.is_dir() else []
    there = [(name, kind) for name, _, kind in (folder.name.rpartition("-") for folder in folders) if name]
    return list(dict.fromkeys([*expected, *there]))


def _scores(layout: RunLayout, recipe: Recipe) -> Iterator[Score]:
    for name, kind in _evaluations(layout, recipe):
        path = layout.scores(name, kind)
        if path.is_file():
            yield Score(name, kind, read_as(path, Scores))


def _agreements(layout: RunLayout, scores: tuple[Score, ...]) -> dict[str, dict[str, Any]]:
    """Adapter against merged, item by item, where both were evaluated."""
    judged = {(score.name, score.kind): list(score.scores.metrics) for score in scores}
    found = {}
    for name in sorted({name for name, _ in judged}):
        pair = [(name, "adapter"), (name, "merged")]
        if not all(one in judged and layout.predictions(*one).is_file() for one in pair):
            continue
        for one in pair:
            check_predictions(read_lines(layout.predictions(*one)), layout.predictions(*one), judged_metrics(judged[one]))
        if (comparison := agreement(layout, name)) is not None:
            found[name] = comparison.to_mapping()
    return found


def _missing(layout: RunLayout, recipe: Recipe, stages: dict[str, StageRecord], scores: tuple[Score, ...]) -> Iterator[str]:
    """A sentence with a command for each part of the pipeline that is not done."""
    run = shlex.quote(str(layout.root))
    wanted = [name for name in ("decompose", "train", "merge") if name != "decompose" or recipe.adapter.method == "soka"]
    for name in wanted:
        record = stages.get(name)
        if record is None:
            yield f"{name} has not run: soka {name} --run {run}"
        elif record.status != "done":
            yield f"{name} is {record.status}, not done: soka {name} --run {run}"
    if not recipe.eval:
        yield "the recipe has no eval entry, so there are no scores"
    judged = {(score.name, score.kind) for score in scores}
    for entry in recipe.eval:
        if absent := [kind for kind in KINDS if (entry.folder, kind) not in judged]:
            yield f"{entry.folder} is not scored for {', '.join(absent)}: soka eval --run {run}"
