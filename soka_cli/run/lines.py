"""Files of JSON lines that grow while a stage works, and survive a kill in the middle of a line."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.resources import disk_full, is_disk_full
from soka_cli.run.write import damaged, reject_constant, sync_folder

Row = dict[str, Any]


def to_line(row: Row) -> bytes:
    """One row as it stands in the file; ValueError for NaN and infinities."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def from_line(line: bytes, path: Path, number: int) -> Row:
    """The row of a finished line; SokaError (exit 5) naming file and line for anything but a JSON object."""
    hint = f"restore {path} from a copy, or do its stage again with --force"
    try:
        row = json.loads(line, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"line {number} is not JSON: {error}", hint) from error
    if not isinstance(row, dict):
        raise damaged(path, f"line {number} is not a JSON object", hint)
    return row


def split_lines(path: Path) -> tuple[list[bytes], bytes]:
    """The finished lines of a file, each with its newline, and what follows the last newline; nothing where no file is."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    finished, newline, rest = content.rpartition(b"\n")
    return [line + b"\n" for line in finished.split(b"\n")] if newline else [], rest


def read_lines(path: Path) -> list[Row]:
    """The finished rows of a file that may still be growing; SokaError (exit 5) where it is missing or a line is damaged."""
    if not path.exists():
        raise damaged(path, "the file is missing")
    return [from_line(line, path, number) for number, line in enumerate(split_lines(path)[0], start=1)]


class AppendFile:
    """A file of JSON lines, open for more. Each append is on the disk before the call returns.

    Opening creates the file, reads the rows that are there and cuts off an unfinished last line.

    Args:
        path: the file; its folder is created.

    Attributes:
        rows: the rows in the file, those appended here included.
        cut: what was cut off on opening, as a sentence to show; empty if nothing was.

    Raises:
        SokaError: exit 5 for any damage but an unfinished last line; exit 6 for a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines, rest = split_lines(path)
        self.rows: list[Row] = [from_line(line, path, number) for number, line in enumerate(lines, start=1)]
        self._ends = ends_of(lines)
        self.cut = ""
        self._descriptor = self._open()
        if rest:
            self.cut = f"{path.name}: cut off the unfinished last line ({len(rest)} bytes after line {len(lines)})."
            self.keep_first(len(lines))

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            created = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path, None) from error
            raise SokaError(
                f"{self.path.name} cannot be written.",
                where=str(self.path),
                why=error.strerror or str(error),
                hint=f"make {self.path.parent} writable, or choose another run directory with --run DIR",
                exit_code=ExitCode.RUN,
            ) from error
        if created:
            sync_folder(self.path.parent)
        return descriptor

    def keep_first(self, count: int) -> None:
        """Cut the file back to its first `count` rows."""
        del self.rows[count:], self._ends[count:]
        os.ftruncate(self._descriptor, self._ends[-1] if self._ends else 0)
        os.fsync(self._descriptor)

    def append(self, row: Row) -> None:
        """Add one row; SokaError (exit 6) if the disk is full, the file then ends with the row before."""
        self.extend([row])

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows with one sync at the end; all of them, or none if the disk is full."""
        added = list(rows)
        lines = [to_line(row) for row in added]
        end = self._ends[-1] if self._ends else 0
        try:
            self._write(b"".join(lines))
        except BaseException as error:
            os.ftruncate(self._descriptor, end)
            if is_disk_full(error):
                raise disk_full(self.path, sum(map(len, lines))) from error
            raise
        self.rows.extend(added)
        self._ends.extend(end + position for position in ends_of(lines))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the file back; closing twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "AppendFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def ends_of(lines: list[bytes]) -> list[int]:
    """The offset behind each line."""
    ends, end = [], 0
    for line in lines:
        end += len(line)
        ends.append(end)
    return ends
