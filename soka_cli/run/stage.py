"""The frame around every stage: lock, staleness, log, record. What a stage computes is its own matter."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.aside import has_content, set_aside
from soka_cli.run.difference import difference
from soka_cli.run.digest import file_digest, json_digest
from soka_cli.run.environment import describe_environment
from soka_cli.run.last import remember_run
from soka_cli.run.layout import RunLayout
from soka_cli.run.lock import RunLock
from soka_cli.run.log import stage_log
from soka_cli.run.manifest import Manifest, Output, StageRecord, Status
from soka_cli.run.reporter import Reporter
from soka_cli.run.resources import resource_error
from soka_cli.run.write import damaged, remove_unfinished, write_json, write_text

Inputs = dict[str, Any]
Extends = Callable[[Inputs, Inputs], bool]
MAXIMUM_LINES = 20


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Stage:
    """One stage under way in a run directory; made by `open_stage`.

    Attributes:
        record: the earlier run's record (None on the first), whatever its status was.
        done: the earlier run finished on the same inputs and its outputs are intact: nothing to do.
        resumable: an earlier run on the same (or extended) inputs left work that may be gone on with.
    """

    layout: RunLayout
    name: str
    inputs: Inputs
    command: str
    record: StageRecord | None = None
    done: bool = False
    resumable: bool = False
    started: str = field(default_factory=utc_now)
    finished: bool = False
    _clock: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        return self.layout.log(self.name)

    @property
    def seconds(self) -> float:
        """Seconds of work on these inputs, those of earlier interrupted runs included."""
        earlier = self.record.seconds if self.record is not None and self.resumable else 0.0
        return round(earlier + time.monotonic() - self._clock, 3)

    def finish(self, outputs: Iterable[Path], environment: dict[str, Any] | None = None) -> None:
        """Record the stage as done.

        Args:
            outputs: files and folders inside the run directory that the stage stands for; their digests are kept.
            environment: what to add to env/<stage>.json, e.g. the device.
        """
        found = [describe_output(path, self.layout.root) for path in files_of(outputs)]
        write_json(self.layout.environment(self.name), describe_environment(environment))
        self._note("done", tuple(found))
        self.finished = True

    def _note(self, status: Status, outputs: tuple[Output, ...] = (), error: str | None = None) -> None:
        record = StageRecord(
            status=status,
            started=self.started,
            finished=None if status == "running" else utc_now(),
            seconds=self.seconds,
            command=self.command,
            inputs=self.inputs,
            inputs_sha256=json_digest(self.inputs),
            outputs=outputs,
            error=error,
        )
        Manifest.read(self.layout.manifest).with_stage(self.name, record).write(self.layout.manifest)


@contextmanager
def open_stage(
    layout: RunLayout,
    name: str,
    inputs: Inputs,
    *,
    recipe_yaml: str,
    source_text: str,
    reporter: Reporter,
    command: str = "",
    force: bool = False,
    folders: Sequence[Path] = (),
    extends: Extends | None = None,
) -> Iterator[Stage]:
    """Hold the run directory while a stage works, and keep its record true whatever happens.

    Args:
        name: decompose, train, eval/<entry>-<kind>, merge or report.
        inputs: JSON values that the result depends on; kept whole in the manifest.
        recipe_yaml, source_text: the resolved recipe and the user's own text.
        command: what the user typed, for the manifest and the lock.
        force: set an earlier run aside unless it is done, intact, and of the same inputs or extended by them.
        folders: what belongs to the stage; moved to `.old/<stage>-<UTC>/` when set aside.
        extends: whether new inputs only ask for more of the same (`extends(old, new)`); then the stage is resumable.

    Raises:
        SokaError: exit 5 where the directory is locked, stale or damaged; exit 6 where disk or memory runs out.
    """
    stage = Stage(layout, name, json.loads(json.dumps(inputs, allow_nan=False)), command)
    with RunLock(layout.lock, command):
        remove_unfinished(layout.root)
        remember_run(layout.root)
        stage.record = Manifest.read(layout.manifest).stages.get(name)
        judge(stage, folders, extends, force=force, reporter=reporter)
        if stage.done:
            yield stage
            return
        write_recipe(layout, recipe_yaml, source_text)
        with stage_log(stage.log) as log:
            log.info("stage %s starts: %s", name, command)
            stage._note("running")
            try:
                yield stage
            except BaseException as error:
                log.error("stage %s ends early", name, exc_info=error)
                note_failure(stage, error)
                replacement = resource_error(error, layout.root)
                if replacement is not None:
                    raise replacement from error
                raise
            if not stage.finished:
                stage._note("interrupted")
            log.info("stage %s ends after %.1f s", name, stage.seconds)


def stage_is_done(layout: RunLayout, name: str, inputs: Inputs) -> bool:
    """Whether the manifest has this stage as done on these inputs; outputs are not verified, no lock is taken."""
    record = Manifest.read(layout.manifest).stages.get(name)
    return record is not None and record.status == "done" and record.inputs_sha256 == json_digest(json.loads(json.dumps(inputs)))


def judge(stage: Stage, folders: Sequence[Path], extends: Extends | None, *, force: bool, reporter: Reporter) -> None:
    """Decide whether the stage is done, resumable or fresh; set the old one aside or refuse."""
    refusal = obstacle(stage, folders, extends)
    if refusal is not None and not force:
        raise refusal
    unfinished = stage.record is not None and stage.record.status != "done"
    if not force or (refusal is None and not unfinished):
        return
    moved = set_aside(stage.layout, stage.name, folders, stage.record)
    if moved is not None:
        reporter.say(f"{stage.name}: the earlier one is kept in {moved}")
    stage.record, stage.done, stage.resumable = None, False, False


def obstacle(stage: Stage, folders: Sequence[Path], extends: Extends | None) -> SokaError | None:
    """What stands against going on with what is there; sets `done` and `resumable` on the way."""
    record = stage.record
    if record is None:
        return unknown_content(stage, folders)
    if record.inputs_sha256 == json_digest(stage.inputs):
        stage.done = record.status == "done"
        stage.resumable = not stage.done
        return damaged_output(stage.layout, record) if stage.done else None
    if record.status != "done" and not has_content(folders):
        stage.record = None  # it failed before it wrote anything: its inputs bind nobody
        return None
    if extends is not None and extends(record.inputs, stage.inputs):
        stage.resumable = True
        return damaged_output(stage.layout, record)
    return stale(stage, record)


def unknown_content(stage: Stage, folders: Sequence[Path]) -> SokaError | None:
    """Files where the stage writes, and no record of where they come from."""
    if not has_content(folders):
        return None
    return SokaError(
        f"The run directory holds files of stage {stage.name} that its manifest does not know.",
        where=", ".join(str(folder) for folder in folders if has_content([folder])),
        why="manifest.json was lost, or the files were put there by hand",
        hint=f"repeat with --force (they are moved to {stage.layout.set_aside}), or choose another run directory with --run DIR",
        exit_code=ExitCode.RUN,
    )


def stale(stage: Stage, record: StageRecord) -> SokaError:
    """The refusal to go on with other inputs, with the difference."""
    lines = difference(record.inputs, stage.inputs)
    if len(lines) > MAXIMUM_LINES:
        lines = [*lines[:MAXIMUM_LINES], f"and {len(lines) - MAXIMUM_LINES} more"]
    done = "was done" if record.status == "done" else "was begun"
    return SokaError(
        f"Stage {stage.name} {done} with other inputs.",
        where=str(stage.layout.root),
        why="\n".join(lines),
        hint=f"repeat with --force (the old stage is moved to {stage.layout.set_aside}), or choose another run directory with --run DIR",
        exit_code=ExitCode.RUN,
    )


def damaged_output(layout: RunLayout, record: StageRecord) -> SokaError | None:
    """The first output that is not as the manifest has it: size first, then digest."""
    hint = "repeat with --force to do the stage again, or restore the file from a copy"
    for output in record.outputs:
        path = layout.root / output.path
        if not path.is_file():
            return damaged(path, "the file is missing", hint)
        if (size := path.stat().st_size) != output.bytes:
            return damaged(path, f"it has {size} bytes, the manifest says {output.bytes}", hint)
        if file_digest(path) != output.sha256:
            return damaged(path, "its sha256 is not the one in the manifest", hint)
    return None


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]


def describe_output(path: Path, root: Path) -> Output:
    return Output(path=path.relative_to(root).as_posix(), sha256=file_digest(path), bytes=path.stat().st_size)


def note_failure(stage: Stage, error: BaseException) -> None:
    """Record how the stage ended; where even that has no room, the first failure is the one to show."""
    status: Status = "interrupted" if isinstance(error, KeyboardInterrupt | GeneratorExit) else "failed"
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    try:
        stage._note(status, error=text)
    except (SokaError, OSError) as second:
        error.add_note(f"the manifest could not be written: {second}")
    error.add_note(f"log: {stage.log}")


def write_recipe(layout: RunLayout, recipe_yaml: str, source_text: str) -> None:
    """Keep the recipe beside what it makes; a text that is there already is left alone."""
    for path, text in ((layout.recipe, recipe_yaml), (layout.recipe_source, source_text)):
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
    manifest = Manifest.read(layout.manifest)
    digests = {"recipe_sha256": file_digest(layout.recipe), "source_sha256": file_digest(layout.recipe_source)}
    if digests != {name: getattr(manifest, name) for name in digests}:
        manifest.model_copy(update=digests).write(layout.manifest)


def recorded_recipe(layout: RunLayout) -> Path:
    """The directory's own recipe.yaml, as it was written; SokaError (exit 5) where it is missing, edited or damaged."""
    if not layout.recipe.is_file():
        raise damaged(layout.recipe, "the file is missing", f"name the recipe too: --recipe NAME --run {layout.root}")
    manifest = Manifest.read(layout.manifest)
    if manifest.recipe_sha256 is not None and file_digest(layout.recipe) != manifest.recipe_sha256:
        hint = f"if it was edited, name it: --recipe {layout.recipe} --run {layout.root}; if not, name the recipe that it came from"
        raise damaged(layout.recipe, "its sha256 is not the one in the manifest", hint)
    source = manifest.source_sha256
    if source is not None and (not layout.recipe_source.is_file() or file_digest(layout.recipe_source) != source):
        hint = f"name the recipe that it came from: --recipe NAME --run {layout.root}; or put the file back from a copy"
        raise damaged(layout.recipe_source, "it is missing, or its sha256 is not the one in the manifest", hint)
    return layout.recipe
