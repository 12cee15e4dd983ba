"""The templates of pages, and how figures are written in them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soka_cli.stages.outcome import Cell

if TYPE_CHECKING:
    from jinja2 import Environment


def templates() -> "Environment":
    """The templates beside this file; text is escaped in HTML, SVG is ours and marked safe where it is put in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "percent": percent, "duration": duration, "gigabytes": gigabytes, "degrees": degrees}
    environment.filters |= {"quantity": quantity, "cell": markdown_cell, "fenced": fenced}
    return environment


def figure(value: Cell) -> str:
    """`1234567` -> `1,234,567`, `0.98500001` -> `0.985`, None -> a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def duration(seconds: float | None) -> str:
    """`75.2` -> `1 min 15 s`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def quantity(value: dict[str, int] | int | None, unit: str) -> str:
    """`4,321`, `1.20 GB`; a span `{from, to}` as `1,000 to 4,321` where its ends differ."""
    if isinstance(value, dict):
        return " to ".join(dict.fromkeys(quantity(end, unit) for end in value.values()))
    return gigabytes(value) if unit == "bytes" else figure(value)


def degrees(angle: float | None) -> str:
    return "–" if angle is None else f"{angle:.3g}°"


def gigabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e9:.2f} GB"


def markdown_cell(value: Any) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def fenced(text: str) -> str:
    """Text as a Markdown code block, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
