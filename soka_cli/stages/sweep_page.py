"""A sweep for people: the best of each method, how the metric goes with each option, and every run."""

import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from soka_cli.recipe.schema import Recipe
from soka_cli.stages.outcome import Cell, Table
from soka_cli.stages.page import Page, Section
from soka_cli.stages.plots import Plot, curve
from soka_cli.stages.sweep_points import RATE
from soka_cli.stages.sweep_record import Record, Result, Setting, lower_is_better, rates_of
from soka_cli.stages.templates import duration, gigabytes

WIDE = 8.0  # largest over smallest value from which on an axis is logarithmic
MOST_LINES = 16


def tables(record: Record) -> tuple[Table, ...]:
    return best_table(record), runs_table(record)


def best_table(record: Record) -> Table:
    rows = tuple(best_row(record, method, best) for method, best in record.bests().items())
    columns = ("method", "setting", "seeds", record.metric, "spread", "parameters", "rates")
    return Table(f"Best of each method by {record.metric}", columns, rows)


def best_row(record: Record, method: str, best: Setting | None) -> tuple[Cell, ...]:
    if best is None:
        return method, "no setting came to its end", None, None, None, None, None
    parameters = next((one.parameters for one in best.results), None)
    rates = len(rates_of(record.results, best)) or None
    return method, setting_text(best.values), len(best.finished), number(best.mean), number(best.spread), parameters, rates


def runs_table(record: Record) -> Table:
    columns = ("run", "status", record.metric, "steps", "parameters", "time", "memory")
    return Table("All runs", columns, tuple(map(run_row, record.results)))


def run_row(one: Result) -> tuple[Cell, ...]:
    seconds = None if one.seconds is None else duration(one.seconds)
    memory = None if one.memory_bytes is None else gigabytes(one.memory_bytes)
    return one.point.name, one.status, number(one.metric), one.steps, one.parameters, seconds, memory


def failures_table(failed: Sequence[Result]) -> tuple[Table, ...]:
    rows = tuple((one.point.name, one.exit_code, one.error) for one in failed)
    return (Table("Failed", ("run", "exit", "error"), rows),) if rows else ()


def number(value: float | None) -> Cell:
    return None if value is None else f"{value:.4f}"


def setting_text(values: dict[str, Any]) -> str:
    return ", ".join(f"{path}={text_of(value)}" for path, value in values.items()) or "the recipe's own"


def text_of(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def marks(record: Record, recipe: Recipe) -> tuple[str, ...]:
    """What keeps the best settings from being each method's best, or from being compared."""
    found = []
    bests = {method: best for method, best in record.bests().items() if best is not None}
    for method, best in bests.items():
        if (edge := record.edge(best)) is not None:
            rates = rates_of(record.results, best)
            step = rates[-1] / rates[-2] if edge == "highest" else rates[0] / rates[1]
            further = f"{best.values[RATE] * step:.3g}"
            found.append(f"{method}: its best {RATE} is the {edge} of the grid; try {further} for every method too")
    tried = {method: tuple(rates_of(record.results, best)) for method, best in bests.items()}
    if len(set(tried.values())) > 1:
        found.append(f"not every method was tried at the same rates: {', '.join(f'{name} {len(rates)}' for name, rates in tried.items())}")
    counts = {method: sum(one.method == method for one in record.settings()) for method in bests}
    if len(set(counts.values())) > 1:
        found.append(f"more settings were tried of some methods: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    validation = recipe.data.validation
    seeds = {one.point.seed for one in record.results}
    if len(seeds) > 1 and record.metric == "eval_loss" and validation is not None and validation.fraction is not None:
        found.append("each seed draws held-out rows of its own, and the spread includes that; data.validation.path holds them fixed")
    if any(len(best.finished) < 2 for best in bests.values()):
        found.append("one seed a setting: how much another seed changes is not known (sweep.best_seeds adds some at the best)")
    if len(record.settings()) > len(bests) and bests:
        found.append("the best of several is chosen by the figure that it is shown with, which flatters it; more so the more was tried")
    return tuple(found)


def next_commands(record: Record) -> tuple[str, ...]:
    runs = [best.results[0].run for best in record.bests().values() if best is not None]
    if len(runs) > 1:
        return (f"soka compare {shlex.quote(str(record.layout.root))}",)
    return tuple(f"soka report --run {shlex.quote(run)}" for run in runs)


def sweep_page(record: Record, recipe: Recipe, warnings: Sequence[str]) -> Page:
    best, runs = tables(record)
    failed = failures_table([one for one in record.results if one.status == "failed"])
    rates = tuple(rate_plots(record))
    crossed = tuple(itertools.chain.from_iterable(crossed_plots(record, method) for method in record.axes))
    sections = [Section("Best of each method", (best,), rates)]
    if crossed:
        note = "Each point is the best over the options that the drawing does not show, the mean over seeds."
        sections.append(Section("Options against one another", plots=crossed, notes=(note,)))
    sections.append(Section("All runs", (runs, *failed)))
    sections.append(Section("To repeat it", code=record.command or f"soka sweep --recipe {record.name}"))
    words = "lower" if lower_is_better(record.metric) else "higher"
    subtitle = f"{recipe.model.name} · {len(record.results)} runs · {record.metric}, {words} is better"
    return Page(f"{record.name}: a sweep", subtitle, tuple(sections), tuple(warnings))


# ---- drawings


def rate_plots(record: Record) -> Iterator[Plot]:
    """Every method over the learning rate, at its best other options."""
    series = {method: points for method in record.axes if (points := best_over(record, method, RATE))}
    if not series or not any(len(points) > 1 for points in series.values()):
        return
    words = ", ".join(f"{name} {value:.4g} at {rate}" for name, points in series.items() for rate, value in [best_point(record, points)])
    title = f"{record.metric} over the learning rate"
    yield lines("rate", title, series, RATE, alt=f"{title}, best: {words}.")


def crossed_plots(record: Record, method: str) -> Iterator[Plot]:
    """For every two options of a method, a line for each value of the one over the values of the other."""
    axes = {path: values for path, values in record.axes[method].items() if len(values) > 1}
    pairs = list(itertools.combinations(axes, 2))
    for one in axes if not pairs else ():
        if one != RATE and (points := best_over(record, method, one)):
            title = f"{method}: {record.metric} over {one}"
            yield lines(f"{method}-{one}", title, {method: points}, one, alt=f"{title}: {points_text(points)}.")
    for across, by in pairs:
        across, by = (by, across) if by == RATE else (across, by)
        series = {f"{short(by)} {text_of(value)}": best_over(record, method, across, {by: value}) for value in axes[by]}
        series = dict(itertools.islice(((name, points) for name, points in series.items() if points), MOST_LINES))
        if series:
            title = f"{method}: {record.metric} over {across} by {by}"
            words = "; ".join(f"{name}: {points_text(points)}" for name, points in series.items())
            yield lines(f"{method}-{across}-{by}", title, series, across, alt=f"{title}: {words}.")


def short(path: str) -> str:
    return path.rpartition(".")[2]


def points_text(points: Sequence[tuple[Any, float]]) -> str:
    return ", ".join(f"{text_of(value)} {found:.4g}" for value, found in points)


def best_over(record: Record, method: str, path: str, held: dict[str, Any] | None = None) -> list[tuple[Any, float]]:
    """(value of the option, best mean over the other options), in the grid's order; runs that halving stopped count as far as they came."""
    found = []
    for value in record.axes[method].get(path, []):
        wanted = {path: value, **(held or {})}
        some = [one for one in record.settings() if one.method == method and all(one.values.get(key) == at for key, at in wanted.items())]
        ranked = record.ranked(some)
        if ranked and (mean := ranked[0].of_seeds(record.seeds).mean) is not None:
            found.append((value, mean))
    return found


def best_point(record: Record, points: Sequence[tuple[Any, float]]) -> tuple[str, float]:
    value, found = (min if lower_is_better(record.metric) else max)(points, key=lambda point: point[1])
    return text_of(value), found


def lines(name: str, title: str, series: dict[str, list[tuple[Any, float]]], across: str, *, alt: str) -> Plot:
    """Lines over an option's values: at their places where all are numbers, else side by side."""
    values = list(dict.fromkeys(text_of(value) for points in series.values() for value, _ in points))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for points in series.values() for value, _ in points)
    file_name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)
    if not numeric:
        placed = {label: [(float(values.index(text_of(value))), found) for value, found in points] for label, points in series.items()}
        return curve(file_name, title, placed, alt=alt, across=across, ticks=values)
    ordered = {label: sorted((float(value), found) for value, found in points) for label, points in series.items()}
    places = [place for points in ordered.values() for place, _ in points]
    wide = min(places) > 0 and max(places) / min(places) >= WIDE
    return curve(file_name, title, ordered, alt=alt, across=across, logarithmic=wide)
