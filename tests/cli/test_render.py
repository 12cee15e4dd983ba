"""Progress as a person sees it: the stage's own estimate of the time left in place of one by the number of units."""

import io

import pytest
from rich.console import Console

from soka_cli.cli import render
from soka_cli.cli.render import ConsoleReporter


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch, *, estimate: float | None) -> str:
    monkeypatch.setattr(render, "PLAIN_SECONDS", 0.0)
    written = io.StringIO()
    with ConsoleReporter(Console(file=written, force_terminal=terminal, width=200)).task("decompose", total=8, unit="modules") as task:
        if estimate is not None:
            task.estimate(estimate)
        task.advance(2, module="model.layers.0.mlp.up_proj", read="1.2/13.5GB")
    return written.getvalue()


def test_plain_lines_show_modules_bytes_and_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shown(False, monkeypatch, estimate=754.0)
    assert "2/8 modules" in line and "754 s left" in line and "read=1.2/13.5GB" in line


def test_without_an_estimate_the_time_left_goes_by_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0 s left" in shown(False, monkeypatch, estimate=None)


def test_a_bar_shows_modules_bytes_and_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = shown(True, monkeypatch, estimate=754.0)
    assert "2/8" in bar and "0:12:34" in bar and "read=1.2/13.5GB" in bar
