"""Disk and memory that ran out: told apart from other failures, and turned into one error that names the bytes."""

import errno
import os
import shutil
from pathlib import Path

from soka_cli.errors import ExitCode, SokaError

# EFBIG: a file-size limit of the shell or the batch system, which fails exactly as a full disk does.
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors and torch wrap the system's error in exceptions of their own and leave only the text.
DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing", "iostream error")
MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


def existing_parent(path: Path) -> Path:
    """The nearest folder on the way up from `path` that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes that a user may still write to the file system of `path`, which need not exist yet."""
    return shutil.disk_usage(existing_parent(path)).free


def available_memory() -> int | None:
    """Bytes of main memory that a new process may take without swapping; None where the system does not say (no Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that the disk, a quota or a file-size limit is exhausted."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_ERRNOS
    return isinstance(error, Exception) and any(text in str(error) for text in DISK_TEXTS)


def is_memory_full(error: BaseException) -> bool:
    """Whether `error` says that main or device memory is exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in MEMORY_TEXTS)


def disk_full(path: Path, needed: int | None, written: int = 0) -> SokaError:
    """The error for a write to `path` that found no room.

    Args:
        path: the file or folder that was being written.
        needed: its size in bytes, None where the writer does not know it.
        written: bytes that went through before the end.
    """
    need = f"{needed} bytes" if needed is not None else f"more than {written} bytes"
    return SokaError(
        f"The disk is full: {path.name} needs {need}, {free_bytes(path)} bytes are free.",
        where=str(path),
        hint=f"free space under {existing_parent(path)} (soka clean removes set-aside stages), then give the same command again",
        exit_code=ExitCode.RESOURCES,
    )


def require_space(path: Path, needed: int) -> None:
    """Refuse early: SokaError (exit 6) if fewer than `needed` bytes are free where `path` will lie."""
    if free_bytes(path) < needed:
        raise disk_full(path, needed)


def resource_error(error: BaseException, path: Path) -> SokaError | None:
    """The error to show in place of `error` if disk or memory ran out while writing under `path`; None for anything else."""
    if isinstance(error, SokaError):
        return None
    if is_disk_full(error):
        named = getattr(error, "filename", None)
        return disk_full(Path(os.fsdecode(named)) if named else path, None)
    if is_memory_full(error):
        return SokaError(
            "Memory is exhausted.",
            where=str(path),
            why=str(error).strip().split("\n")[0] or type(error).__name__,
            hint="make the batches smaller (train.micro_batch_size=1, eval.0.batch_size=1), or close other programs",
            exit_code=ExitCode.RESOURCES,
        )
    return None
