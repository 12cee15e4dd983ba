from pathlib import Path

import pytest

from soka_cli.run.last import last_run, remember_run


def test_a_run_in_this_folder_is_remembered_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "elsewhere/b"):
        Path(name).mkdir(parents=True)
        remember_run(tmp_path / name)
        assert last_run() == Path(name)
        assert Path("runs/.last").read_text() == f"{name}\n"


def test_a_run_elsewhere_leaves_no_trace_in_a_folder_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    remember_run(tmp_path / "there")
    assert list(Path().iterdir()) == []
    Path("runs").mkdir()
    remember_run(tmp_path / "there")
    assert last_run() == tmp_path / "there"


def test_a_run_that_is_gone_is_no_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert last_run() is None
    Path("runs/a").mkdir(parents=True)
    remember_run(Path("runs/a"))
    Path("runs/a").rmdir()
    assert last_run() is None


def test_a_damaged_pointer_is_no_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/.last").write_bytes(b"\xff\x00nothing")
    assert last_run() is None
