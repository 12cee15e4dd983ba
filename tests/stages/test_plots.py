"""Drawings: what is written in them is readable, and inside of them."""

import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from soka_cli.stages.plots import _figure, _legend, curve, front


def test_ticks_of_a_logarithmic_axis_are_numbers_and_no_formula() -> None:
    points = {"one": (4_321.0, 0.65, None), "other": (41_072.0, 0.6, 0.02)}
    drawn = front("front", "Front", points, ["one"], across="trained parameters", up="loss", alt="a")
    rates = curve("rate", "Rate", {"soka": [(1e-3, 1.0), (1e-1, 0.5)]}, alt="a", logarithmic=True)
    for plot in (drawn, rates):
        words = re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg)
        assert words and not any("$" in word or "math" in word for word in words)
        assert any(re.fullmatch(r"[0-9.e+-]+", word.strip()) for word in words)


@pytest.mark.parametrize(
    "labels", [["before clipping", "rarely above 1.5", "clipped at 1", "warned above 2"], ["/a/long/" + "x" * 60, "b" * 70], ["ab"] * 9]
)
def test_a_legend_stays_inside_its_drawing(labels: list[str]) -> None:
    with _figure("legend", legend=labels) as (figure, axes):
        for place, label in enumerate(labels):
            axes.plot([0, 1], [place, place], label=label)
        _legend(axes)
        FigureCanvasAgg(figure).draw()
        box = axes.get_legend().get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
