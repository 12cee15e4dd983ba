"""sweep.json: what each run of a sweep came to, and what that says of settings and methods."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from soka_cli.run.layout import RunLayout
from soka_cli.run.sweep_layout import SweepLayout
from soka_cli.run.write import damaged, read_json, write_json
from soka_cli.stages.contestant import Contestant, contestant, value_at
from soka_cli.stages.over_seeds import spread
from soka_cli.stages.sweep_points import RATE, Point
from soka_cli.tasks.mean import mean

SCHEMA_VERSION = 1
Status = Literal["waiting", "running", "done", "stopped", "failed", "interrupted"]


@dataclass
class Result:
    """One run as the sweep keeps it. `stopped` is a run that halving ended; `metric` is None before there is one."""

    point: Point
    run: str
    status: Status = "waiting"
    exit_code: int | None = None
    error: str | None = None
    steps: int | None = None
    metric: float | None = None
    parameters: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    commands: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        own = {name: value for name, value in vars(self).items() if name != "point"}
        point = self.point
        return {
            "name": point.name,
            "method": point.method,
            "values": point.values,
            "seed": point.seed,
            **own,
            "commands": list(self.commands),
        }

    def read(self, root: Path, metric: str, steps: int | None = None) -> None:
        """Take the figures from the run's own files; `steps` names the length at which it is judged."""
        run = contestant(root)
        self.steps = run.findings.steps[-1].step if steps is None else steps
        self.metric = judged(run, metric, steps)
        self.parameters, self.tokens, self.seconds, self.memory_bytes = run.parameters, run.tokens, run.seconds, run.memory_bytes


def judged(run: Contestant, metric: str, steps: int | None = None) -> float | None:
    """The run's value of the metric, of the end or after so many steps; None where it has none."""
    if metric in ("eval_loss", "loss"):
        curve = run.held_out() if metric == "eval_loss" else run.training_loss()
        if not curve:
            return None
        return curve[-1][1] if steps is None else value_at(curve, steps)
    name, _, score = metric.partition("/")
    found = next((one for one in run.evaluations if one.name == name and one.kind == "adapter"), None)
    return found.metrics[score].value if found is not None and score in found.metrics else None


def lower_is_better(metric: str) -> bool:
    return metric in ("eval_loss", "loss")


@dataclass(frozen=True)
class Setting:
    """One method at one place of the grid, over its seeds. `spread` is the sample standard deviation over seeds."""

    method: str
    values: dict[str, Any]
    results: tuple[Result, ...]

    @property
    def finished(self) -> list[float]:
        return [one.metric for one in self.results if one.status != "failed" and one.metric is not None]

    def of_seeds(self, seeds: Sequence[int]) -> "Setting":
        """The same over some of its seeds."""
        return Setting(self.method, self.values, tuple(one for one in self.results if one.point.seed in seeds))

    @property
    def whole(self) -> bool:
        """Whether every seed came to its end."""
        return bool(self.results) and all(one.status == "done" and one.metric is not None for one in self.results)

    @property
    def mean(self) -> float | None:
        return mean(self.finished) if self.finished else None

    @property
    def spread(self) -> float | None:
        return spread(self.finished)

    def to_mapping(self) -> dict[str, Any]:
        seeds = [one.point.seed for one in self.results]
        return {"method": self.method, "values": self.values, "seeds": seeds, "mean": self.mean, "spread": self.spread}


@dataclass
class Record:
    """All runs of a sweep, written whenever one of them changes.

    Attributes:
        metric: eval_loss, loss, or ENTRY/METRIC.
        axes: by method, its options and values.
        seeds: those of the whole grid. Settings are ranked by these alone; further seeds of the best say how sure that is.
    """

    layout: SweepLayout
    name: str
    command: str
    metric: str
    axes: dict[str, dict[str, list[Any]]]
    seeds: list[int]
    results: list[Result] = field(default_factory=list)

    def write(self) -> None:
        """Replace sweep.json at once; SokaError (exit 6) if the disk is full."""
        write_json(self.layout.record, self.figures())

    def figures(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "command": self.command,
            "metric": self.metric,
            "better": "lower" if lower_is_better(self.metric) else "higher",
            "axes": self.axes,
            "seeds": self.seeds,
            "runs": [one.to_mapping() for one in self.results],
            "settings": [one.to_mapping() for one in self.settings()],
            "best": {method: None if found is None else self.best_figures(found) for method, found in self.bests().items()},
        }

    def best_figures(self, setting: Setting) -> dict[str, Any]:
        return {**setting.to_mapping(), "edge": self.edge(setting), "rates_tried": rates_of(self.results, setting)}

    def settings(self) -> list[Setting]:
        """In the order of the runs."""
        groups: dict[tuple[str, str], list[Result]] = {}
        for one in self.results:
            groups.setdefault(one.point.setting, []).append(one)
        return [Setting(some[0].point.method, some[0].point.values, tuple(some)) for some in groups.values()]

    def ranked(self, settings: Iterable[Setting]) -> list[Setting]:
        """Those with a mean over the grid's seeds, the best first."""
        sign = 1 if lower_is_better(self.metric) else -1
        means = [(one.of_seeds(self.seeds).mean, one) for one in settings]
        return [one for _, one in sorted(((sign * mean, one) for mean, one in means if mean is not None), key=lambda pair: pair[0])]

    def bests(self) -> dict[str, Setting | None]:
        """By method, the best of the settings whose runs all came to their end."""
        whole = [one for one in self.settings() if one.of_seeds(self.seeds).whole]
        ranked = {method: self.ranked(one for one in whole if one.method == method) for method in self.axes}
        return {method: some[0] if some else None for method, some in ranked.items()}

    def edge(self, setting: Setting) -> str | None:
        """lowest or highest, where the setting's learning rate is the last one tried on that side."""
        rates = rates_of(self.results, setting)
        rate = setting.values.get(RATE)
        if len(rates) < 2 or rate not in (rates[0], rates[-1]):
            return None
        return "lowest" if rate == rates[0] else "highest"


def rates_of(results: Sequence[Result], setting: Setting) -> list[float]:
    """The learning rates that were tried with the rest of the setting, rising."""
    rest = without_rate(setting.values)
    same = [one.point for one in results if one.point.method == setting.method and without_rate(one.point.values) == rest]
    return sorted({point.values[RATE] for point in same if RATE in point.values})


def without_rate(values: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in values.items() if path != RATE}


def read_record(root: Path) -> dict[str, Any] | None:
    """sweep.json of a sweep directory; None where there is none. SokaError (exit 5) where it is damaged or of another version."""
    path = SweepLayout(root).record
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION or not isinstance(found.get("runs"), list):
        raise damaged(path, f"it is no sweep.json of schema version {SCHEMA_VERSION}", "run the sweep again; its runs stay")
    return found


def rates_tried(root: Path) -> tuple[float, ...]:
    """The learning rates that the sweep around a run tried with the rest of its setting; none where there is no sweep around it."""
    record = read_record(root.parent)
    own = next((one for one in record["runs"] if one["name"] == root.name), None) if record else None
    if record is None or own is None:
        return ()
    rest = without_rate(own["values"])
    same = [one["values"] for one in record["runs"] if one["method"] == own["method"] and without_rate(one["values"]) == rest]
    return tuple(sorted({values[RATE] for values in same if RATE in values}))


def best_runs(root: Path) -> list[Path]:
    """The runs of each method's best setting in a sweep directory, with every seed that came to its end; empty where it is no sweep's."""
    record = read_record(root)
    if record is None:
        return []
    bests = [(method, best["values"]) for method, best in record["best"].items() if best]
    done = [one for one in record["runs"] if one["status"] == "done"]
    return [root / one["name"] for method, values in bests for one in done if one["method"] == method and one["values"] == values]


def is_a_sweep_s_own(path: Path) -> bool:
    """Whether this lies in a sweep directory beside its runs without being one: logs, the report, sweep.json."""
    return SweepLayout(path.parent).record.is_file() and not RunLayout(path).manifest.is_file()
