"""What a comparison finds: losses at equal steps and tokens, scores column by column, over seeds, paired tests, Pareto fronts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from soka_cli.stages.contestant import Contestant, Curve, Evaluation, value_at
from soka_cli.stages.over_seeds import Figure, OverSeeds, over_seeds
from soka_cli.stages.paired import Paired, holm, paired

BASE = "base"


@dataclass(frozen=True)
class Column:
    """One metric of one benchmark, asked in one way."""

    label: str
    key: str
    metric: str


@dataclass(frozen=True)
class Pair:
    """A paired test of two runs in one column; `adjusted` is p for as many tests as that column has (Holm)."""

    column: Column
    first: str
    second: str
    test: Paired
    adjusted: float


@dataclass(frozen=True)
class Comparison:
    """All that is said of the runs.

    Attributes:
        held_out: whether the curves are losses on held-out rows, else means of the training loss.
        curves: by run, loss over steps.
        steps, tokens: the furthest that every run has come; tokens None where one does not tell.
        fronts: by what goes against the parameters, the runs that no other surpasses.
    """

    runs: tuple[Contestant, ...]
    held_out: bool
    curves: dict[str, Curve]
    steps: float
    tokens: float | None
    columns: tuple[Column, ...]
    pairs: tuple[Pair, ...]
    fronts: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, runs: Sequence[Contestant]) -> "Comparison":
        held_out = all(len(run.held_out()) > 0 and run.held_out()[-1][0] > 0 for run in runs)
        curves = {run.name: run.held_out() if held_out else run.training_loss() for run in runs}
        ends = [points[-1][0] for points in curves.values()]
        read = [run.by_tokens(curves[run.name]) for run in runs]
        columns = tuple(columns_of(runs))
        made = cls(
            runs=tuple(runs),
            held_out=held_out,
            curves=curves,
            steps=min(ends),
            tokens=min(points[-1][0] for points in read) if all(read) else None,
            columns=columns,
            pairs=tuple(pair for column in columns for pair in pairs_of(runs, column)),
            fronts={},
        )
        return cls(**{**vars(made), "fronts": dict(made.find_fronts())})

    # ---- figures

    def best(self, run: Contestant) -> tuple[float, float]:
        """(step, loss) of the lowest point of a run's curve."""
        return min(self.curves[run.name], key=lambda point: point[1])

    def at_steps(self, run: Contestant) -> float | None:
        return value_at(self.curves[run.name], self.steps)

    def at_tokens(self, run: Contestant) -> float | None:
        return None if self.tokens is None else value_at(run.by_tokens(self.curves[run.name]), self.tokens)

    def score(self, run: Contestant, column: Column) -> tuple[float, float | None] | None:
        found = run.evaluation(column.key)
        if found is None or column.metric not in found.metrics:
            return None
        return found.metrics[column.metric].value, found.metrics[column.metric].stderr

    def base_evaluation(self, column: Column) -> Evaluation | None:
        """The untrained base as one of the runs asked it."""
        return next((found for run in self.runs if (found := run.evaluation(column.key, (BASE,))) is not None), None)

    def configurations(self) -> list[OverSeeds]:
        """The figures of runs that differ in their seeds alone, together; none where every run is of its own kind."""
        if not several_seeds(self.runs):
            return []
        losses: dict[str, Figure] = {
            "best loss": lambda run: self.best(run)[1],
            "loss at equal steps": self.at_steps,
            "loss at equal tokens": self.at_tokens,
        }

        def score_of(column: Column) -> Figure:
            return lambda run: None if (found := self.score(run, column)) is None else found[0]

        return over_seeds(self.runs, losses | {column.label: score_of(column) for column in self.columns})

    def find_fronts(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Fewer parameters against a lower loss, and against the first benchmark's score where every run has one."""
        sizes = {run.name: run.parameters for run in self.runs}
        if any(size is None for size in sizes.values()):
            return
        counted = {name: size for name, size in sizes.items() if size is not None}
        yield "loss", undominated(counted, {run.name: -self.best(run)[1] for run in self.runs})
        if self.columns:
            scores = {run.name: self.score(run, self.columns[0]) for run in self.runs}
            if all(scores.values()):
                yield "score", undominated(counted, {name: found[0] for name, found in scores.items() if found is not None})

    def figures(self) -> dict[str, Any]:
        """compare.json's content."""
        return {
            "loss": "eval_loss" if self.held_out else "training loss, mean of ten logged steps",
            "equal_steps": self.steps,
            "equal_tokens": self.tokens,
            "runs": [self.run_figures(run) for run in self.runs],
            "configurations": [one.to_mapping() for one in self.configurations()],
            "base": {column.label: scored(self.base_evaluation(column), column.metric) for column in self.columns},
            "columns": [asdict(column) | {"asked": self.asked(column)} for column in self.columns],
            "pairs": [pair_figures(pair) for pair in self.pairs],
            "fronts": {name: list(front) for name, front in self.fronts.items()},
        }

    def asked(self, column: Column) -> dict[str, Any]:
        return next(found.asked for run in self.runs if (found := run.evaluation(column.key)) is not None)

    def run_figures(self, run: Contestant) -> dict[str, Any]:
        step, loss = self.best(run)
        return {
            "name": run.name,
            "run": str(run.root),
            "method": run.recipe.adapter.method,
            "seed": run.recipe.seed,
            "lr": run.recipe.train.lr,
            "rates_tried": list(run.trials),
            "parameters": run.parameters,
            "steps": run.findings.steps[-1].step,
            "tokens": run.tokens,
            "best_loss": loss,
            "best_loss_step": step,
            "loss_at_equal_steps": self.at_steps(run),
            "loss_at_equal_tokens": self.at_tokens(run),
            "scores": {column.label: scored(run.evaluation(column.key), column.metric) for column in self.columns},
            "seconds": run.seconds,
            "memory_bytes": run.memory_bytes,
            "curve": [list(point) for point in self.curves[run.name]],
        }


def columns_of(runs: Sequence[Contestant]) -> Iterator[Column]:
    """One for each metric of each way in which a benchmark was asked; two ways of one name get letters."""
    ways: dict[str, Evaluation] = {}
    for run in runs:
        for one in run.evaluations:
            if run.evaluation(one.key) is not None:
                ways.setdefault(one.key, one)
    names = [way_name(one) for one in ways.values()]
    for place, (key, one) in enumerate(ways.items()):
        letter = f" ({chr(ord('a') + names[:place].count(names[place]))})" if names.count(names[place]) > 1 else ""
        yield from (Column(f"{names[place]}{letter} {metric}", key, metric) for metric in one.metrics)


def way_name(one: Evaluation) -> str:
    limit = one.asked["decoding"].get("limit")
    return f"{one.asked['task']} {one.asked['protocol']}" + (f", first {limit}" if limit else "")


def several_seeds(runs: Sequence[Contestant]) -> bool:
    """Whether a configuration has runs of more than one seed."""
    found = {(run.configuration, run.recipe.seed) for run in runs}
    return len(found) > len({configuration for configuration, _ in found})


def pairs_of(runs: Sequence[Contestant], column: Column) -> Iterator[Pair]:
    """A test for every two runs that were asked in this way; where configurations have several seeds, for those of equal seed."""
    apart = several_seeds(runs)
    seeds = {run.name: run.recipe.seed for run in runs}
    asked = [(run.name, found) for run in runs if (found := run.evaluation(column.key)) is not None and column.metric in found.metrics]
    shares = [(name, found.shares(column.metric)) for name, found in asked if found.predictions.is_file()]
    tests = [
        (one, other, paired(ours, theirs))
        for place, (one, ours) in enumerate(shares)
        for other, theirs in shares[place + 1 :]
        if not apart or seeds[one] == seeds[other]
    ]
    for (one, other, test), adjusted in zip(tests, holm([test.p for _, _, test in tests]), strict=True):
        yield Pair(column, one, other, test, adjusted)


def pair_figures(pair: Pair) -> dict[str, Any]:
    return {"column": pair.column.label, "first": pair.first, "second": pair.second, **asdict(pair.test), "p_holm": pair.adjusted}


def scored(found: Evaluation | None, metric: str) -> dict[str, Any] | None:
    if found is None or metric not in found.metrics:
        return None
    return {"value": found.metrics[metric].value, "stderr": found.metrics[metric].stderr, "items": found.items, "model": found.kind}


def undominated(sizes: dict[str, int], goodness: dict[str, float]) -> tuple[str, ...]:
    """The runs to which no other is at least equal in both and better in one; sizes count downwards."""

    def surpasses(one: str, other: str) -> bool:
        no_worse = sizes[one] <= sizes[other] and goodness[one] >= goodness[other]
        return no_worse and (sizes[one] < sizes[other] or goodness[one] > goodness[other])

    return tuple(name for name in sizes if not any(surpasses(other, name) for other in sizes))
