"""A comparison for people: tables, drawings and the sections of its page."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from soka_cli.stages.comparison import BASE, Comparison, Pair, scored
from soka_cli.stages.contestant import Contestant
from soka_cli.stages.outcome import Cell, Table
from soka_cli.stages.over_seeds import OverSeeds
from soka_cli.stages.page import Section
from soka_cli.stages.plots import Plot, curve, front
from soka_cli.stages.templates import duration, gigabytes, percent


def tables(comparison: Comparison) -> Iterator[Table]:
    kind = "held-out loss" if comparison.held_out else "training loss"
    tokens = "-" if comparison.tokens is None else f"{comparison.tokens:,.0f}"
    columns = (
        "run",
        "method",
        "lr",
        "parameters",
        f"best {kind}",
        f"at {comparison.steps:,.0f} steps",
        f"at {tokens} tokens",
        "time",
        "memory",
    )
    yield Table("Training", columns, tuple(training_row(comparison, run) for run in comparison.runs))
    if configurations := comparison.configurations():
        names = [name for name in configurations[0].figures if not name.startswith("loss at equal tokens")]
        rows = tuple(seeds_row(one, names) for one in configurations)
        yield Table("Over seeds, mean ± sample standard deviation", ("configuration", "method", "seeds", "parameters", *names), rows)
    if comparison.columns:
        labels = tuple(column.label for column in comparison.columns)
        yield Table("Scores, with standard errors over items", ("model", *labels), tuple(score_rows(comparison)))
    if comparison.pairs:
        yield pairs_table(comparison.pairs)


def training_row(comparison: Comparison, run: Contestant) -> tuple[Cell, ...]:
    losses = (comparison.best(run)[1], comparison.at_steps(run), comparison.at_tokens(run))
    cells = tuple(None if loss is None else f"{loss:.4f}" for loss in losses)
    what = (run.name, run.recipe.adapter.method, f"{run.recipe.train.lr:g}", run.parameters)
    return (*what, *cells, duration(run.seconds), gigabytes(run.memory_bytes))


def seeds_row(one: OverSeeds, names: Sequence[str]) -> tuple[Cell, ...]:
    first = one.runs[0]
    cells = (seeds_cell(one.figures[name], loss="loss" in name.split()) for name in names)
    return (one.name, first.recipe.adapter.method, ", ".join(map(str, one.seeds)), first.parameters, *cells)


def seeds_cell(found: tuple[float | None, float | None], *, loss: bool) -> Cell:
    """4 digits of a loss, per cent of a score."""
    middle, spread = found
    if middle is None:
        return None
    written = [f"{value:.4f}" if loss else percent(value) for value in (middle, spread) if value is not None]
    return " ± ".join(written)


def score_rows(comparison: Comparison) -> Iterator[tuple[Cell, ...]]:
    base = [scored(comparison.base_evaluation(column), column.metric) for column in comparison.columns]
    if any(base):
        yield (BASE, *map(score_cell, base))
    for run in comparison.runs:
        yield (run.name, *(score_cell(scored(run.evaluation(column.key), column.metric)) for column in comparison.columns))


def front_notes(comparison: Comparison) -> tuple[str, ...]:
    words = {"loss": "a lower loss", "score": f"a higher {comparison.columns[0].label}" if comparison.columns else ""}
    return tuple(
        f"no other run has both fewer parameters and {words[name]} (Pareto front): {', '.join(found)}"
        for name, found in comparison.fronts.items()
    )


def sections(comparison: Comparison, command: str) -> Iterator[Section]:
    every = list(tables(comparison))
    count = 2 if comparison.configurations() else 1
    training, others = every[:count], every[count:]
    yield Section("Training", tuple(training), tuple(curve_plots(comparison)))
    if others:
        protocols = sorted({f"{one.asked['task']}: protocol {one.asked['protocol']}" for run in comparison.runs for one in run.evaluations})
        yield Section("Scores", tuple(others), notes=tuple(protocols))
    if comparison.fronts:
        yield Section("Parameters against results", plots=tuple(front_plots(comparison)), notes=front_notes(comparison))
    runs = " ".join(shlex.quote(str(run.root)) for run in comparison.runs)
    yield Section("To repeat it", code=command or f"soka compare {runs}")


def curve_plots(comparison: Comparison) -> Iterator[Plot]:
    kind = "Loss on held-out rows" if comparison.held_out else "Training loss, mean of ten logged steps"
    ends = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in comparison.curves.items())
    yield curve("loss-steps", f"{kind}, over steps", comparison.curves, alt=f"{kind} over optimizer steps, last: {ends}.")
    read = {run.name: run.by_tokens(comparison.curves[run.name]) for run in comparison.runs}
    if all(read.values()):
        yield curve("loss-tokens", f"{kind}, over tokens", read, alt=f"{kind} over tokens read, last: {ends}.", across="tokens read")
    if comparison.held_out:
        training = {run.name: run.training_loss() for run in comparison.runs}
        words = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in training.items())
        title = "Training loss, mean of ten logged steps"
        yield curve("training-loss", title, training, alt=f"{title}, last: {words}.")


def front_plots(comparison: Comparison) -> Iterator[Plot]:
    for name, best in comparison.fronts.items():
        points: dict[str, tuple[float, float, float | None]] = {}
        for run in comparison.runs:
            found = comparison.score(run, comparison.columns[0]) if name == "score" else (comparison.best(run)[1], None)
            if found is not None:
                points[run.name] = (float(run.parameters or 0), *found)
        up = comparison.columns[0].label if name == "score" else "best loss"
        alt = f"{up} against trained parameters; on the front: {', '.join(best)}."
        yield front(f"front-{name}", f"Parameters and {up}", points, best, across="trained parameters", up=up, alt=alt)


def pairs_table(pairs: Sequence[Pair]) -> Table:
    several = len({(pair.first, pair.second) for pair in pairs}) > 1
    columns = ("benchmark", "first", "second", "items", "first alone right", "second alone right", "p")
    rows = tuple(
        (
            pair.column.label,
            pair.first,
            pair.second,
            pair.test.items,
            pair.test.better,
            pair.test.worse,
            f"{pair.test.p:.3g}",
            *((f"{pair.adjusted:.3g}",) if several else ()),
        )
        for pair in pairs
    )
    return Table("Paired test over items (McNemar, exact)", (*columns, *(("p, Holm",) if several else ())), rows)


def score_cell(found: dict[str, Any] | None) -> Cell:
    if found is None:
        return None
    return percent(found["value"]) + ("" if found["stderr"] is None else f" ± {percent(found['stderr'])}")
