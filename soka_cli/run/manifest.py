"""The book of a run directory: which stages ran, on what, and what they left."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soka_cli import __version__
from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.write import damaged, read_json, write_json

SCHEMA_VERSION = 1
Status = Literal["running", "done", "failed", "interrupted"]


class Entry(BaseModel):
    """A frozen part of the manifest, with no key that it does not name and no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Output(Entry):
    """One file that a stage left: its path relative to the run directory, sha256 in hex, size in bytes."""

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class StageRecord(Entry):
    """One stage's latest run. Times are UTC in ISO form; `seconds` adds up over interruptions; `error` is the failure's first line."""

    status: Status
    started: str
    finished: str | None = None
    seconds: float = Field(0.0, ge=0.0)
    command: str = ""
    inputs: dict[str, Any]
    inputs_sha256: str
    outputs: tuple[Output, ...] = ()
    error: str | None = None


class Manifest(Entry):
    """`manifest.json`. `recipe_sha256` and `source_sha256` are the two recipe files', so that an edited or damaged one is seen."""

    schema_version: int = SCHEMA_VERSION
    written_by: str = f"soka {__version__}"
    recipe_sha256: str | None = None
    source_sha256: str | None = None
    stages: dict[str, StageRecord] = {}

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """The manifest at `path`; an empty one where there is none yet.

        Raises:
            SokaError: exit 5, the file is damaged or of another schema version.
        """
        if not path.exists():
            return cls()
        value = read_json(path)
        refuse_other_version(value, path)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise damaged(path, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error

    def write(self, path: Path) -> None:
        """Replace the file at once; SokaError (exit 6) if the disk is full."""
        write_json(path, self.model_copy(update={"written_by": f"soka {__version__}"}).model_dump(mode="json"))

    def with_stage(self, name: str, record: StageRecord) -> "Manifest":
        """The manifest with one stage's record replaced; the order of the stages stays."""
        return self.model_copy(update={"stages": {**self.stages, name: record}})

    def without_stage(self, name: str) -> "Manifest":
        """The manifest with one stage's record dropped."""
        return self.model_copy(update={"stages": {known: record for known, record in self.stages.items() if known != name}})


def refuse_other_version(value: Any, path: Path) -> None:
    """A manifest of another schema version is refused by name rather than misread (version 1 is the first)."""
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise damaged(path, "it names no schema_version")
    if version != SCHEMA_VERSION:
        writer = value.get("written_by", "another soka")
        raise SokaError(
            f"The run directory has manifest schema version {version}; this soka {__version__} reads version {SCHEMA_VERSION}.",
            where=str(path),
            why=f"it was written by {writer}",
            hint=f"use the soka that wrote it ({writer}), or start afresh with --run DIR",
            exit_code=ExitCode.RUN,
        )
