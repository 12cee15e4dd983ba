"""Progress as a person sees it: the stage's own estimate of the time left in place of one by the number of units."""

import io

import pytest
from rich.console import Console

from soka_cli.cli import render
from soka_cli.cli.render import ConsoleReporter
from soka_cli.stages.outcome import Outcome, Table


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


@pytest.mark.parametrize("terminal", [True, False])
def test_what_was_done_before_tells_nothing_of_the_time_left(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """90 of 100 steps were there; 2 more took 20 seconds, so 8 take 80."""
    clock = [1000.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(render, "PLAIN_SECONDS", 15.0)
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=200, get_time=lambda: clock[0])
    with ConsoleReporter(console).task("train", total=100, unit="steps") as task:
        task.already(90)
        for _ in range(2):
            clock[0] += 10
            task.advance(1)
    assert ("0:01:20" if terminal else "92/100 steps, 20 s, 80 s left") in written.getvalue()


def test_a_bar_shows_modules_bytes_and_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = shown(True, monkeypatch, estimate=754.0)
    assert "2/8" in bar and "0:12:34" in bar and "read=1.2/13.5GB" in bar


def drawn(width: int) -> str:
    written = io.StringIO()
    renderer = render.Renderer()
    renderer.out = Console(file=written, width=width)
    table = Table("answers", ("", "wrong", "right"), (("gold", "one", "two"), ("why", "no", "yes")), stack_below=100)
    renderer.outcome(Outcome("eval", "done", tables=(table,)))
    return written.getvalue()


def test_a_wide_terminal_shows_two_answers_side_by_side() -> None:
    assert any("one" in line and "two" in line for line in drawn(100).splitlines())


def test_a_narrow_terminal_shows_two_answers_one_below_the_other() -> None:
    lines = drawn(99).splitlines()
    assert not any("one" in line and "two" in line for line in lines)
    wrong, right = ([number for number, line in enumerate(lines) if word in line] for word in ("wrong", "right"))
    assert wrong < right
    assert sum("gold" in line for line in lines) == sum("why" in line for line in lines) == 2
