"""The report's drawings: SVG text that follows the reader's light or dark scheme and needs no network."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib draws in these colours, which nothing else has; the SVG then names them, so that CSS can choose by scheme.
INK, GRID, FIRST, SECOND, THIRD = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
FOURTH, FIFTH, SIXTH, SEVENTH, EIGHTH = "#101112", "#131415", "#161718", "#191a1b", "#1c1d1e"
SERIES = (FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH, EIGHTH)
WORDS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
NAMES = {INK: "ink", GRID: "grid", **dict(zip(SERIES, WORDS, strict=True))}
LIGHT_SERIES = ("#1f6fb5", "#b3511d", "#2f7d4f", "#7d4bb5", "#857000", "#ab2866", "#0f7680", "#646a73")
DARK_SERIES = ("#6cb2f0", "#f0a06a", "#78c896", "#bb9df2", "#d9c250", "#f08cbf", "#62d0d8", "#a9b0b9")
LIGHT = {"ink": "#24292f", "grid": "#d8dce1", **dict(zip(WORDS, LIGHT_SERIES, strict=True))}
DARK = {"ink": "#d6dae0", "grid": "#3a414b", **dict(zip(WORDS, DARK_SERIES, strict=True))}
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))  # of the first eight lines, the next eight, and those after
LEVEL_DASHES = ((0, (4, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)))
MARKS = (("s", 8.0), ("^", 6.5), ("o", 4.0))  # shape and size in points, the larger ones first, so that none hides another
LEGEND_COLUMNS = 3
LEGEND_WIDTH = 4.4  # inches: what a legend in the middle of the axes may take without leaving the drawing
LEGEND_MARK, LEGEND_LETTER = 0.5, 0.075  # inches: an entry's line and gaps, and a letter of its label
LONGEST_LABEL = 48  # letters that a row holds
LEGEND_ROW = 0.19  # inches
FAINTEST = 0.3  # opacity of the first layer's line; the last one's is 1


@dataclass(frozen=True)
class Plot:
    """A drawing, and in words what it shows."""

    name: str
    title: str
    alt: str
    svg: str


def curve(
    name: str,
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    alt: str,
    levels: Mapping[str, float] | None = None,
    across: str = "optimizer step",
    logarithmic: bool = False,
    ticks: Sequence[str] = (),
) -> Plot:
    """Values over `across`, a line for each series; few points are marked.

    Args:
        levels: heights to compare with.
        ticks: words for the places 0, 1, ... where these are no numbers.
    """
    entries = [*series, *(f"{label} {level:g}" for label, level in (levels or {}).items())]
    with _figure(name, legend=entries if len(entries) > 1 else ()) as (figure, axes):
        for index, (label, points) in enumerate(series.items()):
            places, values = zip(*points, strict=True)
            axes.plot(places, values, **_line(index), marker="o" if len(points) <= 20 else "", markersize=3.5, label=label)
        for index, (label, level) in enumerate((levels or {}).items()):
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=LEVEL_DASHES[index % len(LEVEL_DASHES)], label=f"{label} {level:g}")
        axes.set_xlabel(across)
        if logarithmic:
            _logarithmic(axes)
        if ticks:
            axes.set_xticks(range(len(ticks)), list(ticks))
        if len(entries) > 1:
            _legend(axes)
        return Plot(name, title, alt, _svg(figure, name, alt))


def _line(index: int) -> dict[str, Any]:
    """Colour and dashes of a line, its own up to 24 lines."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index // len(SERIES) % len(DASHES)], "linewidth": 1.4}


def front(
    name: str, title: str, points: Mapping[str, tuple[float, float, float | None]], best: Sequence[str], *, across: str, up: str, alt: str
) -> Plot:
    """A dot with its error bar for each (across, up, standard error), and a line through those that none surpasses."""
    with _figure(name, legend=list(points)) as (figure, axes):
        edge = sorted((points[label][0], points[label][1]) for label in best)
        axes.step(*zip(*edge, strict=True), where="post", color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        for index, (label, (x, y, error)) in enumerate(points.items()):
            colour = SERIES[index % len(SERIES)]
            axes.errorbar([x], [y], yerr=[error or 0.0], color=colour, marker="o", markersize=6, linestyle="", capsize=3, label=label)
        _logarithmic(axes)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _legend(axes)
        return Plot(name, title, alt, _svg(figure, name, alt))


def spectra(name: str, title: str, spectra: Sequence[Sequence[float]], marks: Mapping[str, Sequence[int | None]], *, alt: str) -> Plot:
    """Singular values relative to the first, a line for each module, later layers stronger.

    Args:
        marks: for each line what is marked on it: a term counted from 1, None for one beyond the line's end.
    """
    from matplotlib.ticker import MaxNLocator

    with _figure(name, legend=list(marks)) as (figure, axes):
        lines = [[value / sigma[0] if sigma[0] else 0.0 for value in sigma] for sigma in spectra]
        for index, share in enumerate(lines):
            axes.plot(range(1, len(share) + 1), share, color=FIRST, linewidth=1.1, alpha=_opacity(index, len(lines)))
        for (label, places), (marker, size), colour in zip(marks.items(), MARKS, SERIES[1:], strict=False):
            axes.plot([], [], color=colour, marker=marker, markersize=size, linestyle="", fillstyle=_fill(marker), label=label)
            for index, (share, place) in enumerate(zip(lines, places, strict=True)):
                if place is not None and place <= len(share):
                    at, opacity = max(place, 1), _opacity(index, len(lines))
                    axes.plot([at], [share[at - 1]], color=colour, marker=marker, markersize=size, fillstyle=_fill(marker), alpha=opacity)
        axes.set_xlabel("term k")
        axes.set_ylabel("sigma k / sigma 1")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        return Plot(name, title, alt, _svg(figure, name, alt))


def _opacity(index: int, count: int) -> float:
    return FAINTEST + (1 - FAINTEST) * (index + 1) / count


def _fill(marker: str) -> str:
    return "full" if marker == "o" else "none"


def spectra_compared(name: str, title: str, sides: Mapping[str, Sequence[Sequence[float]]], *, alt: str) -> Plot:
    """Singular values relative to the first: a colour for each side, in it a line for each module, later layers stronger."""
    from matplotlib.ticker import MaxNLocator

    with _figure(name, legend=list(sides)) as (figure, axes):
        for side, (label, members) in enumerate(sides.items()):
            for index, sigma in enumerate(members):
                share = [value / sigma[0] if sigma[0] else 0.0 for value in sigma]
                axes.plot(
                    range(1, len(share) + 1),
                    share,
                    **_line(side) | {"linewidth": 1.1, "linestyle": DASHES[side % len(DASHES)]},
                    alpha=_opacity(index, len(members)),
                    label=label if index == len(members) - 1 else None,
                )
        axes.set_xlabel("term k")
        axes.set_ylabel("sigma k / sigma 1")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        return Plot(name, title, alt, _svg(figure, name, alt))


def module_map(name: str, title: str, table: Mapping[str, Mapping[str, float]], *, alt: str) -> Plot:
    """A number in a field for each row and column, the larger the stronger its colour; the first row at the top."""
    from matplotlib.patches import Rectangle

    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    numbers = [value for row in table.values() for value in row.values()]
    least, most = min(numbers), max(numbers)
    with _figure(name, height=1.3 + 0.24 * len(table)) as (figure, axes):
        axes.grid(False)
        axes.tick_params(length=0)
        for y, row in enumerate(table.values()):
            for x, column in enumerate(columns):
                if column not in row:
                    continue
                strength = (row[column] - least) / (most - least) if most > least else 0.5
                # behind a text of the ink's colour, so never of full strength
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=FIRST, alpha=0.06 + 0.44 * strength, linewidth=0))
                axes.text(x, y, f"{row[column]:.3g}", ha="center", va="center", fontsize=8)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(table) - 0.5, -0.5)
        short = [column.rpartition(".")[2] for column in columns]
        axes.set_xticks(range(len(columns)), short, rotation=25, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(table)), list(table), fontsize=8)
        axes.set_ylabel("layer")
        return Plot(name, title, alt, _svg(figure, name, alt))


def score_bars(name: str, title: str, scores: Mapping[str, Mapping[str, tuple[float, float | None]]], *, alt: str) -> Plot:
    """Shares of right answers with their standard errors: a row for each model, a colour for each metric."""
    metrics = list(dict.fromkeys(metric for row in scores.values() for metric in row))
    with _figure(name, height=1.3 + 0.5 * len(scores), legend=metrics) as (figure, axes):
        for place, metric in enumerate(metrics):
            offset = (place - (len(metrics) - 1) / 2) * 0.22
            rows = [(row + offset, *values[metric]) for row, values in enumerate(scores.values()) if metric in values]
            heights, values, errors = zip(*rows, strict=True)
            axes.errorbar(
                [100 * value for value in values],
                heights,
                xerr=[100 * (error or 0.0) for error in errors],
                color=SERIES[place % len(SERIES)],
                marker="o",
                markersize=5,
                linestyle="",
                capsize=3,
                label=metric,
            )
        axes.set_yticks(range(len(scores)), list(scores))
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("right answers, %")
        _legend(axes)
        return Plot(name, title, alt, _svg(figure, name, alt))


def _legend(axes: "Axes") -> None:
    """Above the axes, where no line runs through it, in as many columns as the labels leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    shown = [label if len(label) <= LONGEST_LABEL else f"...{label[3 - LONGEST_LABEL :]}" for label in labels]
    columns = _legend_columns(labels)
    axes.legend(handles, shown, frameon=False, fontsize=9, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.2)


def _legend_columns(labels: Collection[str]) -> int:
    widest = LEGEND_MARK + LEGEND_LETTER * max(map(len, labels), default=0)
    return max(1, min(LEGEND_COLUMNS, int(LEGEND_WIDTH / widest)))


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic x axis whose ticks are written in plain digits, as no formula is set in these drawings."""
    from matplotlib.ticker import LogFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter())


@contextmanager
def _figure(name: str, height: float = 3.0, legend: Collection[str] = ()) -> "Iterator[tuple[Figure, Axes]]":
    """A drawing of 5 inches' width without pyplot's global state; words stay text, and a $ in them is a $.

    Args:
        height: in inches; a `legend` of more labels than one row holds adds to it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # its own, so that no two drawings of a page share an id
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):
        more = LEGEND_ROW * (max(len(legend) - 1, 0) // _legend_columns(legend))
        height += more
        figure = Figure(figsize=(5.0, height))
        # fixed margins: matplotlib's own layout draws everything twice
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.55 / height, top=1 - (0.3 + more) / height)
        yield figure, figure.add_subplot()


def _svg(figure: "Figure", name: str, alt: str) -> str:
    """The figure as one <svg> element: transparent, described, coloured by name, with no metadata and no repeated id."""
    from io import StringIO

    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g|<path) id="[A-Za-z0-9.]+_\d+"', r"\1", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", f"<style>{_stylesheet()}</style>", text, count=1, flags=re.DOTALL)
    for colour, named in NAMES.items():
        text = text.replace(colour, f"var(--soka-{named})")
    return text.replace("<svg ", f'<svg class="soka-plot" role="img" aria-label="{escape(alt)}" data-plot="{escape(name)}" ', 1)


def _stylesheet() -> str:
    """Colours of both schemes; the SVG carries them itself, so that the file under plots/ looks the same."""
    light, dark = ("".join(f"--soka-{name}:{colour};" for name, colour in scheme.items()) for scheme in (LIGHT, DARK))
    return (
        f".soka-plot{{{light}font-family:system-ui,sans-serif}}"
        f"@media screen and (prefers-color-scheme:dark){{.soka-plot{{{dark}}}}}"
        ".soka-plot *{stroke-linejoin:round;stroke-linecap:butt}"
    )
