"""One process at a time works in a run directory."""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from soka_cli.errors import ExitCode, SokaError

# What this process holds: resolved path -> (pid, descriptor, depth). A forked child finds its parent's entries and skips them.
HELD: dict[Path, tuple[int, int, int]] = {}


class RunLock:
    """A POSIX record lock on a file, as a context manager; reentrant inside one process.

    The kernel drops it with the process, however that ends, and a forked worker does not have it (flock would be inherited).
    Trap: closing any other descriptor of the file in this process drops the lock too, so nothing else may open it.

    Args:
        path: the lock file; its folder is created. It holds pid, host, command and start of the holder.
        command: what the user typed; empty takes the process's own words.

    Raises:
        SokaError: exit 5 naming the holder, or where the file cannot be locked at all.
    """

    def __init__(self, path: Path, command: str = "") -> None:
        self.path = path
        self.command = command or shlex.join(sys.argv)
        self._key = path.resolve()

    def __enter__(self) -> "RunLock":
        pid, descriptor, depth = HELD.get(self._key, (0, -1, 0))
        if pid != os.getpid():
            descriptor, depth = self._acquire(), 0
        HELD[self._key] = (os.getpid(), descriptor, depth + 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pid, descriptor, depth = HELD[self._key]
        if pid != os.getpid():
            return
        if depth > 1:
            HELD[self._key] = (pid, descriptor, depth - 1)
            return
        del HELD[self._key]
        os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def _acquire(self) -> int:
        while True:
            descriptor = self._open()
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = read_holder(descriptor)
                os.close(descriptor)
                raise self._refusal(error, holder) from error
            if is_current(descriptor, self.path):
                write_holder(descriptor, self.command)
                return descriptor
            os.close(descriptor)  # somebody deleted the file between opening and locking

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._refusal(error, "") from error

    def _refusal(self, error: OSError, holder: str) -> SokaError:
        if error.errno not in (errno.EACCES, errno.EAGAIN) or not holder:
            return SokaError(
                "The run directory cannot be used: its lock file cannot be opened or locked.",
                where=str(self.path),
                why=error.strerror or str(error),
                hint="choose a writable run directory on a local disk with --run DIR",
                exit_code=ExitCode.RUN,
            )
        return SokaError(
            f"The run directory is in use by {holder}.",
            where=str(self.path.parent),
            hint="wait until it ends, or choose another run directory with --run DIR",
            exit_code=ExitCode.RUN,
        )


def is_current(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the file behind `descriptor`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_holder(descriptor: int, command: str) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def read_holder(descriptor: int) -> str:
    """The holder in words; the file is empty for an instant after the lock is taken, so it is read again once."""
    for wait in (0.0, 0.1):
        time.sleep(wait)
        try:
            holder = json.loads(os.pread(descriptor, 1 << 16, 0))
            return f"process {holder['pid']} on {holder['host']} ({holder['command']}, since {holder['started']})"
        except (ValueError, KeyError, TypeError):
            continue
    return "another process"
