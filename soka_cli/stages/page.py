"""A page of tables and drawings: one HTML file that needs no network, its Markdown twin, and the drawings as files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.write import atomic_folder, to_json
from soka_cli.stages.outcome import Table
from soka_cli.stages.plots import Plot
from soka_cli.stages.templates import templates


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading."""

    title: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Page:
    """What a page shows; `warned` heads the `warnings`."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()
    warned: str = field(default="Read with care:")


def write_page(folder: Path, name: str, page: Page, figures: Mapping[str, Any]) -> Path:
    """Write `name`.html, .md and .json and plots/*.svg as the whole of `folder`, at once; returns the HTML file.

    Raises:
        SokaError: exit 5, the folder holds something else than an earlier page of this name.
    """
    if folder.exists() and not (folder / f"{name}.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SokaError(
            f"{folder} is not a {name} written earlier, and is not replaced",
            where=str(folder),
            why="a page is written as a whole folder, in place of the one before",
            hint="name a folder of its own",
            exit_code=ExitCode.RUN,
        )
    plots = [plot for section in page.sections for plot in section.plots]
    paths = {plot.name: f"plots/{plot.name}.svg" for plot in plots}
    environment = templates()
    with atomic_folder(folder) as staged:
        (staged / "plots").mkdir()
        for plot in plots:
            (staged / paths[plot.name]).write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{plot.svg}\n', encoding="utf-8")
        (staged / f"{name}.json").write_text(to_json(dict(figures)), encoding="utf-8")
        for ending in ("html", "md"):
            template = environment.get_template(f"tables_page.{ending}.jinja")
            (staged / f"{name}.{ending}").write_text(template.render(page=page, plot_paths=paths), encoding="utf-8")
    return folder / f"{name}.html"
