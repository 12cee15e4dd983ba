"""Processes that soka starts run the program that started them."""

from pathlib import Path

import pytest

from soka_cli.run.program import VARIABLE, become, program_words


def test_it_is_soka_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert program_words() == ("-m", "soka_cli")


def test_it_is_the_file_of_a_program_of_ones_own_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    become("mine.py")
    monkeypatch.chdir("/")
    assert program_words() == (str(tmp_path / "mine.py"),)
