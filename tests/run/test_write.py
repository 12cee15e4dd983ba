import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run import write
from soka_cli.run.write import atomic_file, atomic_folder, read_json, remove_unfinished, write_json, write_text
from tests.run.conftest import in_child


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a.safetensors") as staged:
            os.close(os.open(staged, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_the_temporary_name_keeps_the_suffix_that_writers_read(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "plot.svg") as staged:
        assert staged.suffix == ".svg"
        assert staged.parent == tmp_path
        staged.write_text("<svg/>")


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.txt") as staged:
        staged.write_text("half")
        raise RuntimeError("stop")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for word in ("one", "two"):
        with atomic_folder(tmp_path / "model") as staged:
            (staged / "sub").mkdir()
            (staged / "sub" / word).write_text(word)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model" / "sub") == ["two"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as staged:
        (staged / "one").write_text("one")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as staged:
        (staged / "two").write_text("two")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["one"]


def test_json_that_is_written_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_json_keeps_its_order_and_its_values(tmp_path: Path) -> None:
    value = {"b": 2e-05, "a": ["é", None, True], "c": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a", "c"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": NaN}', b"\x00" * 64, b'{"a": "\xff"}', b"[" * 100_000])
def test_a_broken_json_file_is_named_with_exit_5(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "layers.json"
    path.write_bytes(content)
    with pytest.raises(SokaError) as caught:
        read_json(path)
    assert caught.value.exit_code == ExitCode.RUN
    assert str(path) in caught.value.where
    assert caught.value.hint


def test_a_missing_json_file_is_named_with_exit_5(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        read_json(tmp_path / "gone.json")
    assert (caught.value.exit_code, caught.value.where) == (ExitCode.RUN, str(tmp_path / "gone.json"))


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_exit_6_naming_needed_and_free_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    write_text(tmp_path / "a.bin", "old")
    monkeypatch.setattr("soka_cli.run.resources.free_bytes", lambda path: 1234)
    with pytest.raises(SokaError) as caught, atomic_file(tmp_path / "a.bin", needed=98765) as staged:
        staged.write_bytes(b"half")
        raise failure
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert "98765 bytes" in caught.value.what and "1234 bytes" in caught.value.what and "a.bin" in caught.value.what
    assert (tmp_path / "a.bin").read_text() == "old"
    assert names(tmp_path) == ["a.bin"]


def test_another_failure_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_file(tmp_path / "a.bin"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_file_size_limit_that_really_bites_is_a_full_disk(tmp_path: Path) -> None:
    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_text(tmp_path / "a.txt", "x" * 5000)
        except SokaError as error:
            assert error.exit_code == ExitCode.RESOURCES and "5000 bytes" in error.what
        else:
            raise AssertionError("it was written")

    assert in_child(child) == 0
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_is_under_way_is_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{write.UNFINISHED}deadbeef-7-model").mkdir()
    (tmp_path / "sub" / f"{write.UNFINISHED}deadbeef-7-model" / "shard").write_text("half")
    (tmp_path / f"{write.UNFINISHED}deadbeef-7-a.json").write_text("half")
    with atomic_file(tmp_path / "b.json") as staged:
        staged.write_text("{}")
        assert len(remove_unfinished(tmp_path)) == 2
    assert names(tmp_path) == ["b.json", "sub"]
    assert names(tmp_path / "sub") == []


def test_the_bytes_are_synced_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        order.append("sync")
        sync(descriptor)

    def noted_replace(self: Path, target: Any) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_text(tmp_path / "a.txt", "a")
    assert order == ["sync", "replace", "sync"]
