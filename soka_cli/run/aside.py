"""Old stages that --force moved out of the way: kept under `.old/` until `soka clean`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest, StageRecord
from soka_cli.run.write import bytes_under, remove, sync_folder, write_json


@dataclass(frozen=True)
class SetAside:
    """One set-aside stage: its folder and the bytes in it."""

    path: Path
    bytes: int


def has_content(paths: Sequence[Path]) -> bool:
    """Whether any of these files or folders holds a byte."""
    return any(bytes_under(path) > 0 for path in paths)


def set_aside(layout: RunLayout, stage: str, folders: Sequence[Path], record: StageRecord | None) -> Path | None:
    """Move a stage's folders to `.old/<stage>-<UTC>/`, its record beside them as stage.json.

    The first folder becomes that folder; further ones go into it under their own names.

    Returns:
        The folder under `.old/`, None where there was nothing to move.
    """
    present = [folder for folder in folders if folder.exists()]
    if not present:
        return None
    target = free_name(layout.set_aside, f"{stage.replace('/', '-')}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    target.parent.mkdir(parents=True, exist_ok=True)
    present[0].rename(target)
    for folder in present[1:]:
        folder.rename(target / folder.name)
    for parent in {folder.parent for folder in present} | {target.parent}:
        sync_folder(parent)
    if record is not None:
        write_json(target / "stage.json", record.model_dump(mode="json"))
    return target


def retire(layout: RunLayout, stage: str, folders: Sequence[Path]) -> Path | None:
    """Set a stage aside and drop its record, so that the next run of it begins afresh; the caller holds the run's lock.

    Killed in between, it is simply repeated: the record goes last.

    Returns:
        The folder under `.old/`, None where there was nothing to move.
    """
    manifest = Manifest.read(layout.manifest)
    moved = set_aside(layout, stage, folders, manifest.stages.get(stage))
    manifest.without_stage(stage).write(layout.manifest)
    return moved


def free_name(parent: Path, name: str) -> Path:
    """`name`, or `name-2`, `name-3`, ... where that is taken already."""
    path, count = parent / name, 1
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    return path


def list_set_aside(layout: RunLayout) -> list[SetAside]:
    """The set-aside stages of a run, oldest name first; empty where there are none."""
    if not layout.set_aside.is_dir():
        return []
    return [SetAside(path, bytes_under(path)) for path in sorted(layout.set_aside.iterdir())]


def remove_set_aside(layout: RunLayout) -> list[SetAside]:
    """Delete every set-aside stage; returns what was deleted."""
    found = list_set_aside(layout)
    remove(layout.set_aside)
    return found
