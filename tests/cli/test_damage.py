"""A run directory with any one of its files cut, overwritten or lost: refused by name, never a traceback, never passed over."""

import json
import shutil
from pathlib import Path

import pytest

from soka_cli.cli.app import main
from soka_cli.errors import ExitCode
from soka_cli.stages.outcome import Outcome

UNREAD = {"logs", "env", "checkpoints", ".lock", "plan.json", ".last"}
"""Names that hold no input of a later stage: logs, descriptions, checkpoints of a finished training, a plan."""


def damageable(root: Path) -> list[Path]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [path for path in files if not UNREAD & set(path.relative_to(root).parts)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x00\xff{" + path.read_bytes()[3:])


@pytest.mark.parametrize("damage", [cut, overwrite, Path.unlink])
def test_every_file_of_a_finished_run_is_missed_when_it_is_damaged(
    finished: tuple[Path, Outcome], tmp_path: Path, damage: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = finished[0] / "runs/tiny"
    monkeypatch.chdir(tmp_path)
    names = [path.relative_to(source) for path in damageable(source)]
    assert len(names) >= 25
    passed_over = []
    for name in names:
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        shutil.copytree(source, tmp_path / "tiny")
        damage(tmp_path / "tiny" / name)  # type: ignore[operator]
        code = main(["run", "--run", "tiny", "--json"])
        shown = capsys.readouterr().out
        named = code == ExitCode.RUN and name.name in shown
        if not named:
            passed_over.append((str(name), code, json.loads(shown).get("error")))
    assert passed_over == []
