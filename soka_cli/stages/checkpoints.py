"""Checkpoints that are complete or absent, and the search for the newest one that is intact."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soka_cli.errors import SokaError
from soka_cli.run.digest import file_digest, json_digest
from soka_cli.run.reporter import Reporter
from soka_cli.run.resources import require_space
from soka_cli.run.write import atomic_folder, bytes_under, read_json, remove, write_json

PREFIX = "checkpoint-"
DIGESTS = "digests.json"  # written last: a folder without it was never complete
OTHERS = {"recipe": "another recipe", "data": "other data", "base": "another base"}
LENGTH = ("steps", "epochs")  # of the train section: a longer run goes on from a shorter one's checkpoints


def origin_of(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Digests of recipe, data and base by which a checkpoint knows its run, from the inputs of the stage."""
    rest = {name: value for name, value in inputs.items() if name not in OTHERS}
    train = {name: value for name, value in inputs["train"].items() if name not in LENGTH}
    return {"recipe": json_digest(rest | {"train": train}), "data": json_digest(inputs["data"]), "base": json_digest(inputs["base"])}


@dataclass(frozen=True)
class Checkpoints:
    """The folder `train/checkpoints` of a run; the newest `keep` stay. `origin` is what they are made of (`origin_of`)."""

    folder: Path
    keep: int
    origin: Mapping[str, str]

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, damaged ones included, ascending."""
        if not self.folder.is_dir():
            return []
        endings = (entry.name.removeprefix(PREFIX) for entry in self.folder.glob(f"{PREFIX}*") if entry.is_dir())
        return sorted(int(ending) for ending in endings if ending.isdecimal())

    @contextmanager
    def writing(self, step: int, spare: int | None = None) -> Iterator[Path]:
        """Yield an empty folder that becomes the checkpoint of `step` when the block ends well; then drop the oldest but that of `spare`.

        Raises:
            SokaError: exit 6, there is less room than the largest checkpoint so far takes, or the disk is full. The others stay.
        """
        needed = max((bytes_under(self.path(known)) for known in self.steps()), default=0)
        require_space(self.path(step), needed)
        with atomic_folder(self.path(step), needed=needed or None) as staged:
            yield staged
            files = sorted(path for path in staged.rglob("*") if path.is_file())
            listed = {path.relative_to(staged).as_posix(): {"sha256": file_digest(path), "bytes": path.stat().st_size} for path in files}
            write_json(staged / DIGESTS, {"of": dict(self.origin), "files": listed})
        for old in [known for known in self.steps() if known <= step][: -self.keep]:
            if old != spare:
                remove(self.path(old))

    def newest_intact(self, reporter: Reporter) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint of this run whose digests verify; the ones passed over are named to the user."""
        for step in reversed(self.steps()):
            fault = self.fault(step)
            if fault is None:
                return step, self.path(step)
            reporter.warn(f"{self.path(step).name} is skipped: {fault}.")
        return None

    def fault(self, step: int) -> str | None:
        """Why the checkpoint of `step` is not to be gone on with, in words; None where it is intact and this run's own."""
        return damage(self.path(step)) or foreign(self.path(step), self.origin)


def foreign(folder: Path, origin: Mapping[str, str]) -> str | None:
    """Whether an intact checkpoint is another run's, in words."""
    of = read_json(folder / DIGESTS)["of"]
    differing = [word for name, word in OTHERS.items() if of.get(name) != origin[name]]
    return f"it is of {', '.join(differing)}" if differing else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was written."""
    if not (folder / DIGESTS).is_file():
        return f"it is incomplete ({DIGESTS} is missing)"
    try:
        digests = read_json(folder / DIGESTS)
        if digests.keys() != {"of", "files"} or not isinstance(digests["of"], dict):
            return f"{DIGESTS} does not say of which recipe, data and base it is (an earlier version wrote it)"
        for name, entry in digests["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or file_digest(path) != entry["sha256"]:
                return f"{name} is damaged"
    except (SokaError, AttributeError, KeyError, TypeError):
        return f"{DIGESTS} is damaged"
    return None
