"""Digests that say whether two inputs are the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

from soka_cli.run.write import damaged


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex; SokaError (exit 5) naming a file that cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def json_digest(value: Any) -> str:
    """sha256 of a JSON value, in hex; the order of keys does not count. ValueError for NaN and infinities."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def folder_digest(path: Path) -> str:
    """sha256 over the names and digests of all files in a folder, in hex; where the folder lies does not count."""
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return json_digest({file.relative_to(path).as_posix(): file_digest(file) for file in files})
