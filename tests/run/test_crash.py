"""A process killed between any two steps on the file system leaves a directory that the next one can use."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soka_cli.run.aside import retire
from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest
from soka_cli.run.write import UNFINISHED, atomic_folder
from tests.run.conftest import INPUTS, do_stage, in_child

STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"}
CHANGED = {**INPUTS, "seed": 1}


def killed_at(step: int, action: Callable[[], Any]) -> int:
    """Run `action` in a child that kills itself before its `step`-th step on the file system; 0 if it ended before that."""

    def child() -> None:
        count = 0

        def watch(event: str, details: tuple[object, ...]) -> None:
            nonlocal count
            if event in STEPS or (event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        action()

    return in_child(child)


def every_kill(action: Callable[[], Any], check: Callable[[int], None]) -> int:
    """Kill `action` at its first, second, ... step and call `check` after each; returns how many kills there were."""
    step = 1
    while (status := killed_at(step, action)) != 0:
        assert status == -signal.SIGKILL
        check(step)
        step += 1
    return step - 1


def test_a_first_run_killed_at_any_step_can_be_done_again(layout: RunLayout) -> None:
    def check(step: int) -> None:
        do_stage(layout)
        assert Manifest.read(layout.manifest).stages["train"].status == "done"
        assert list(layout.root.rglob(f"{UNFINISHED}*")) == []
        shutil.rmtree(layout.root.parent)

    assert every_kill(lambda: do_stage(layout), check) > 20


def test_a_forced_run_killed_at_any_step_loses_neither_the_old_stage_nor_the_directory(layout: RunLayout) -> None:
    do_stage(layout)
    old = (layout.adapter / "weights").read_text()

    def check(step: int) -> None:
        assert old in [path.read_text() for path in layout.root.rglob("weights")]
        do_stage(layout, CHANGED, force=True)
        assert do_stage(layout, CHANGED).done
        do_stage(layout, force=True)
        shutil.rmtree(layout.set_aside)

    assert every_kill(lambda: do_stage(layout, CHANGED, force=True), check) > 10


def test_a_stage_retired_and_killed_at_any_step_is_retired_by_doing_it_again(layout: RunLayout) -> None:
    do_stage(layout)

    def check(step: int) -> None:
        retire(layout, "train", [layout.train])
        assert "train" not in Manifest.read(layout.manifest).stages
        assert not layout.train.exists()
        assert len(list(layout.set_aside.rglob("weights"))) == 1
        shutil.rmtree(layout.set_aside)
        do_stage(layout)

    assert every_kill(lambda: retire(layout, "train", [layout.train]), check) > 4


def test_a_folder_killed_at_any_step_is_the_old_one_the_new_one_or_absent(tmp_path: Path) -> None:
    def write(word: str) -> None:
        with atomic_folder(tmp_path / "model") as staged:
            for name in ("a", "b"):
                (staged / name).write_text(word)

    write("old")

    def check(step: int) -> None:
        found = sorted(path.read_text() for path in (tmp_path / "model").glob("*"))
        assert found in (["old", "old"], ["new", "new"], [])
        write("old")

    assert every_kill(lambda: write("new"), check) > 5
