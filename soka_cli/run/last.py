"""The run directory used last in the current folder, so that `soka eval` alone knows where to look."""

from contextlib import suppress
from pathlib import Path

from soka_cli.run.write import write_text

RUNS = Path("runs")
POINTER = RUNS / ".last"


def remember_run(root: Path) -> None:
    """Write `runs/.last`: the path relative to the current folder where it lies inside, else the absolute one.

    A folder without `runs/` gets one only for a run of its own: naming a run elsewhere leaves no trace here. Where the
    folder cannot be written, nothing is remembered.
    """
    resolved, here = root.resolve(), Path.cwd().resolve()
    inside = resolved.is_relative_to(here)
    if not inside and not RUNS.is_dir():
        return
    text = f"{resolved.relative_to(here) if inside else resolved}\n"
    if not POINTER.is_file() or POINTER.read_bytes() != text.encode():
        with suppress(PermissionError):
            write_text(POINTER, text)


def last_run() -> Path | None:
    """The run directory used last in the current folder; None where none was, or where it is gone."""
    if not POINTER.is_file():
        return None
    root = Path(POINTER.read_bytes().decode(errors="replace").strip())
    return root if root.is_dir() else None
