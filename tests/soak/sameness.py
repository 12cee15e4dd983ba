"""Whether two runs of decompose left the same: all bytes, but for the seconds that the solver took."""

import json
from pathlib import Path
from typing import Any

from soka_cli.run.layout import RunLayout


def without_seconds(layers: Path) -> Any:
    held = json.loads(layers.read_text())
    for part in (*held["modules"], held["totals"]):
        del part["seconds"]
    return held


def differences(one: RunLayout, other: RunLayout) -> list[str]:
    """The files of decompose/ that differ, or are in one run alone."""
    names = {path.name for layout in (one, other) for path in layout.decompose.iterdir()} - {one.layers.name}
    found = [
        name
        for name in sorted(names)
        if any(not (layout.decompose / name).is_file() for layout in (one, other))
        or (one.decompose / name).read_bytes() != (other.decompose / name).read_bytes()
    ]
    return found + ([] if without_seconds(one.layers) == without_seconds(other.layers) else [one.layers.name])
