"""Files and folders that are complete or absent: written aside, synced, renamed.

What is under way carries a name that begins with `.writing-`; `remove_unfinished` clears what a killed process left.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.resources import disk_full, is_disk_full

UNFINISHED = ".writing-"
# Process ids repeat (in containers at once), this does not; forked children share it and differ in their ids.
TOKEN = secrets.token_hex(4)


def own_prefix() -> str:
    """How the names begin under which this process writes."""
    return f"{UNFINISHED}{TOKEN}-{os.getpid()}-"


def staging_path(path: Path) -> Path:
    """Where `path` is written before it gets its name; the suffix stays, since some writers read it."""
    return path.with_name(f"{own_prefix()}{path.name}")


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk, so that a rename in it survives a crash."""
    sync_file(path)


def settle(path: Path) -> None:
    """Sync one file and give it the mode that a plain open would have given (safetensors writes 0600)."""
    path.chmod(0o666 & ~umask())
    sync_file(path)


def bytes_under(path: Path) -> int:
    """Bytes in a file, or in all files of a folder; 0 where nothing is."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size if path.exists() else 0


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds; absent is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def cleaned_up(staged: Path, path: Path, needed: int | None) -> Iterator[None]:
    """Leave nothing of `staged` behind on failure; a full disk becomes SokaError (exit 6) with needed and free bytes."""
    try:
        yield
    except BaseException as error:
        written = bytes_under(staged)
        remove(staged)
        if is_disk_full(error):
            raise disk_full(path, needed, written) from error
        raise


@contextmanager
def atomic_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well its file is synced and takes the name `path`.

    Args:
        path: the final name; its folder is created.
        needed: the size in bytes if known, for the message of a full disk.

    Raises:
        SokaError: exit 6, the disk is full. Then, as on any other failure, an earlier `path` is untouched.
    """
    staged = staging_path(path)
    with cleaned_up(staged, path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(staged)
        yield staged
        settle(staged)
        staged.replace(path)
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield an empty staging folder beside `path`; when the block ends well it becomes `path`, in place of an earlier one.

    Raises:
        SokaError: exit 6, the disk is full. Then, as on any other failure, an earlier `path` is untouched.
    """
    staged = staging_path(path)
    replaced = path.with_name(f"{staged.name}.replaced")
    with cleaned_up(staged, path, needed):
        remove(staged)
        remove(replaced)
        staged.mkdir(parents=True)
        yield staged
        for entry in sorted(staged.rglob("*")):
            if entry.is_file():
                settle(entry)
            elif entry.is_dir():
                sync_folder(entry)
        sync_folder(staged)
        if path.exists():
            path.rename(replaced)
        staged.rename(path)
        sync_folder(path.parent)
    remove(replaced)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; the file is the old one or the new one, never a part."""
    data = text.encode()
    with atomic_file(path, needed=len(data)) as staged:
        staged.write_bytes(data)


def to_json(value: Any) -> str:
    """JSON as our files hold it: keys in the given order, indented, a final newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value; ValueError where a number is NaN or infinite."""
    write_text(path, to_json(value))


def reject_constant(text: str) -> float:
    """NaN and the infinities are no JSON, though Python's parser takes them."""
    raise ValueError(f"{text} is not JSON")


def damaged(path: Path, why: str, hint: str = "") -> SokaError:
    """The error for a file of a run directory that is not as it was written (exit 5)."""
    return SokaError(
        f"{path.name} is damaged.",
        where=str(path),
        why=why,
        hint=hint or f"restore {path} from a copy, or start afresh with --run DIR",
        exit_code=ExitCode.RUN,
    )


def read_text(path: Path) -> str:
    """UTF-8 text of a run directory's file; SokaError (exit 5) naming the file where it is missing, unreadable or not text."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise damaged(path, "the file is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error


def read_json(path: Path) -> Any:
    """One JSON value of a run directory's file; SokaError (exit 5) naming the file where it is missing or broken."""
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not JSON: {error}") from error


def remove_unfinished(root: Path) -> list[Path]:
    """Delete what killed processes left half-written under `root`; the caller holds the run's lock. Returns what was there."""
    found = [path for path in sorted(root.rglob(f"{UNFINISHED}*")) if not path.name.startswith(own_prefix())]
    for path in found:
        remove(path)
    return found
