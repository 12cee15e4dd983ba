"""The report's drawings: SVG text that follows the reader's light or dark scheme and needs no network."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib draws in these colours, which nothing else has; the SVG then names them, so that CSS can choose by scheme.
INK, GRID, FIRST, SECOND, THIRD = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
SERIES = (FIRST, SECOND, THIRD)
NAMES = {INK: "ink", GRID: "grid", FIRST: "first", SECOND: "second", THIRD: "third"}
LIGHT = {"ink": "#24292f", "grid": "#d8dce1", "first": "#1f6fb5", "second": "#b3511d", "third": "#2f7d4f"}
DARK = {"ink": "#d6dae0", "grid": "#3a414b", "first": "#6cb2f0", "second": "#f0a06a", "third": "#78c896"}
FAINTEST = 0.3  # opacity of the first layer's line; the last one's is 1


@dataclass(frozen=True)
class Plot:
    """A drawing, and in words what it shows."""

    name: str
    title: str
    alt: str
    svg: str


def curve(
    name: str, title: str, series: Mapping[str, Sequence[tuple[int, float]]], *, alt: str, limit: float | None = None, limit_name: str = ""
) -> Plot:
    """Values over optimizer steps, a line for each series; few points are marked. `limit` is a level to compare with."""
    with _figure(title) as (figure, axes):
        for colour, (label, points) in zip(SERIES, series.items(), strict=False):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, linewidth=1.4, marker="o" if len(points) <= 20 else "", markersize=3.5, label=label)
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=f"{limit_name} {limit:g}")
        axes.set_xlabel("optimizer step")
        if len(series) > 1 or limit is not None:
            _legend(axes)
        return Plot(name, title, alt, _svg(figure, name, alt))


def spectra(name: str, title: str, spectra: Sequence[Sequence[float]], ranks: Sequence[int], *, alt: str) -> Plot:
    """Singular values relative to the first, a line for each module (later layers stronger), a dot at the last kept term."""
    from matplotlib.ticker import MaxNLocator

    with _figure(title) as (figure, axes):
        for index, (sigma, rank) in enumerate(zip(spectra, ranks, strict=True)):
            share = [value / sigma[0] if sigma[0] else 0.0 for value in sigma]
            opacity = FAINTEST + (1 - FAINTEST) * (index + 1) / len(spectra)
            axes.plot(range(1, len(share) + 1), share, color=FIRST, linewidth=1.1, alpha=opacity)
            axes.plot([rank], [share[rank - 1]], color=SECOND, marker="o", markersize=4.5, alpha=opacity, linestyle="")
        axes.set_xlabel("term k")
        axes.set_ylabel("sigma k / sigma 1")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return Plot(name, title, alt, _svg(figure, name, alt))


def score_bars(name: str, title: str, scores: Mapping[str, Mapping[str, tuple[float, float | None]]], *, alt: str) -> Plot:
    """Shares of right answers with their standard errors: a row for each model, a colour for each metric."""
    metrics = list(dict.fromkeys(metric for row in scores.values() for metric in row))
    with _figure(title, height=1.3 + 0.5 * len(scores)) as (figure, axes):
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
    """Above the axes, where no line runs through it."""
    axes.legend(frameon=False, fontsize=9, ncols=len(SERIES), loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.2)


@contextmanager
def _figure(title: str, height: float = 3.0) -> "Iterator[tuple[Figure, Axes]]":
    """A drawing of 5 inches' width without pyplot's global state; words stay text, and a $ in them is a $."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
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
        figure = Figure(figsize=(5.0, height))
        # fixed margins: matplotlib's own layout draws everything twice
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.55 / height, top=1 - 0.3 / height)
        yield figure, figure.add_subplot()


def _svg(figure: "Figure", name: str, alt: str) -> str:
    """The figure as one <svg> element: transparent, described, coloured by name, with no metadata and no repeated id."""
    from io import StringIO

    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g|<path) id="[A-Za-z0-9]+_\d+"', r"\1", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", f"<style>{_stylesheet()}</style>", text, count=1, flags=re.DOTALL)
    for colour, named in NAMES.items():
        text = text.replace(colour, f"var(--soka-{named})")
    return text.replace("<svg ", f'<svg class="soka-plot" role="img" aria-label="{escape(alt)}" data-plot="{escape(name)}" ', 1)


def _stylesheet() -> str:
    """Colours of both schemes; the SVG carries them itself, so that the file under plots/ looks the same."""
    light, dark = ("".join(f"--soka-{name}:{colour};" for name, colour in scheme.items()) for scheme in (LIGHT, DARK))
    return (
        f".soka-plot{{{light}font-family:system-ui,sans-serif}}"
        f"@media (prefers-color-scheme:dark){{.soka-plot{{{dark}}}}}"
        ".soka-plot *{stroke-linejoin:round;stroke-linecap:butt}"
    )
