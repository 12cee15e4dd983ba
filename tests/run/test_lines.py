import os
import resource
import signal
import time
from pathlib import Path

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.lines import AppendFile, read_lines
from tests.run.conftest import in_child

ROWS = [{"id": "0", "text": "ein Ä"}, {"id": "1", "text": "line\nbreak \u2028"}, {"id": "2", "loss": 2e-05}]


def written(path: Path) -> Path:
    with AppendFile(path) as file:
        file.extend(ROWS)
    return path


def test_rows_come_back_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "predictions.jsonl"
    with AppendFile(path) as file:
        for row in ROWS:
            file.append(row)
        assert file.rows == ROWS
    assert read_lines(path) == ROWS
    assert AppendFile(path).rows == ROWS


@pytest.mark.parametrize("lost", range(1, 15))
def test_an_unfinished_last_line_is_cut_off_and_said(tmp_path: Path, lost: int) -> None:
    path = written(tmp_path / "predictions.jsonl")
    path.write_bytes(path.read_bytes()[:-lost])
    with AppendFile(path) as file:
        assert file.rows == ROWS[:2]
        assert "predictions.jsonl" in file.cut and "line 2" in file.cut
        file.append(ROWS[2])
    assert read_lines(path) == ROWS


def test_a_whole_file_is_opened_without_a_word(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl")
    before = path.read_bytes()
    with AppendFile(path) as file:
        assert file.cut == ""
    assert path.read_bytes() == before


def test_a_file_that_is_only_an_unfinished_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": ')
    with AppendFile(path) as file:
        assert (file.rows, bool(file.cut)) == ([], True)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"", b'{"id": ', b"[1]", b"\x00\x00", b'{"a": NaN}', b"\xff"])
def test_any_other_damage_is_exit_5_naming_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b'{"id": "0"}\n' + line + b'\n{"id": "2"}\n')
    before = path.read_bytes()
    for opened in (AppendFile, read_lines):
        with pytest.raises(SokaError) as caught:
            opened(path)
        assert caught.value.exit_code == ExitCode.RUN
        assert caught.value.where == str(path) and "line 2" in caught.value.why
    assert path.read_bytes() == before


def test_reading_a_missing_file_is_exit_5(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        read_lines(tmp_path / "gone.jsonl")
    assert caught.value.exit_code == ExitCode.RUN


def test_a_log_is_cut_back_to_the_resumed_row_and_goes_on_there(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl")
    with AppendFile(path) as file:
        file.keep_first(1)
        assert file.rows == ROWS[:1]
        file.append({"step": 2})
    assert read_lines(path) == [ROWS[0], {"step": 2}]


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl")
    with AppendFile(path) as file, pytest.raises(ValueError):
        file.extend([{"loss": 1.0}, {"loss": float("nan")}])
    assert read_lines(path) == ROWS


def test_a_disk_that_fills_up_in_a_row_leaves_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with AppendFile(path) as file:
            file.append({"id": "0"})
            try:
                file.append({"completion": "x" * 200})
            except SokaError as error:
                assert error.exit_code == ExitCode.RESOURCES and "bytes are free" in error.what
            else:
                raise AssertionError("it was written")
            file.append({"id": "1"})

    assert in_child(child) == 0
    assert read_lines(path) == [{"id": "0"}, {"id": "1"}]


def test_a_writer_killed_at_any_moment_leaves_a_file_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    AppendFile(path).close()
    for round_number in range(8):
        before = read_lines(path)
        size = path.stat().st_size
        child = os.fork()
        if child == 0:
            with AppendFile(path) as file:
                while True:
                    file.append({"id": len(file.rows), "completion": "x" * 5000})
        while path.stat().st_size < size + 12000:
            time.sleep(0.001)
        time.sleep(0.0007 * round_number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with AppendFile(path) as file:
            assert [row["id"] for row in file.rows] == list(range(len(file.rows)))
            assert len(file.rows) >= len(before) + 2
