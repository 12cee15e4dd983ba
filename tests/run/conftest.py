"""A small stage in a run directory, and forked children that can be killed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.run.stage import Stage, open_stage

INPUTS: dict[str, Any] = {"model": {"name": "tiny"}, "train": {"lr": 2e-05, "steps": 10}}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it handed to the kernel, so syncs prove nothing here and cost seconds on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLayout:
    monkeypatch.chdir(tmp_path)
    return RunLayout(Path("runs") / "tiny")


def do_stage(layout: RunLayout, inputs: dict[str, Any] = INPUTS, work: Callable[[Stage], None] | None = None, **options: Any) -> Stage:
    """Open the stage train, write its one file unless it is done, and finish."""
    options = {"reporter": SilentReporter(), "command": "soka train", "folders": [layout.train], **options}
    with open_stage(layout, "train", inputs, recipe_yaml="seed: 0\n", source_text="# mine\nseed: 0\n", **options) as stage:
        if not stage.done:
            if work is not None:
                work(stage)
            layout.adapter.mkdir(parents=True, exist_ok=True)
            (layout.adapter / "weights").write_text(f"weights for {inputs}")
            stage.finish([layout.train], {"device": "cpu"})
    return stage


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked child; its exit status as `os.waitstatus_to_exitcode` gives it (negative: the signal), 1 on an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files_under(root: Path) -> dict[str, tuple[int, int]]:
    """Each file's inode and time of change: equal before and after where nothing was rewritten."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(root.rglob("*")) if path.is_file()}
