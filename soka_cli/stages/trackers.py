"""Trackers: mirrors of metrics.jsonl for people's dashboards. They may fail; the run does not notice."""

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.log import LOGGER
from soka_cli.run.reporter import Reporter
from soka_cli.run.write import remove

PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "soka"
SERVERS = {
    "trackio": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID"),
    "mlflow": ("MLFLOW_TRACKING_URI",),
}
"""Variables that name where to send; wandb, which sends by itself, is told to be offline."""
HERE = {"MLFLOW_TRACKING_URI": re.compile(r"(file|sqlite):|(?!databricks)[^:]*$")}  # what lies on this machine


class Tracker(Protocol):
    """What Accelerate's trackers do."""

    def start(self) -> None: ...
    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


Opener = Callable[[str, Path, bool], Tracker]


def _tensorboard(run: str, folder: Path, offline: bool) -> Tracker:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(run, folder)


def _trackio(run: str, folder: Path, offline: bool) -> Tracker:
    import trackio
    from accelerate.tracking import TrackioTracker

    class Finished(TrackioTracker):
        """Accelerate's leaves the run with trackio, which finishes it once more, and prints so, when the interpreter ends."""

        def finish(self) -> None:
            trackio.finish()

    return Finished(PROJECT, name=run)


def _wandb(run: str, folder: Path, offline: bool) -> Tracker:
    from accelerate.tracking import WandBTracker

    folder.mkdir(parents=True, exist_ok=True)
    return WandBTracker(PROJECT, name=run, dir=str(folder), **({"mode": "offline"} if offline else {}))


def _mlflow(run: str, folder: Path, offline: bool) -> Tracker:
    """Where the environment names no server, files: the small package has no data base."""
    import mlflow
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(folder.absolute().as_uri())
    return MLflowTracker(PROJECT, run_name=run)


OPENERS: dict[str, Opener] = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}


def server_variable(name: str) -> str | None:
    """The environment's variable by which a tracker sends to another machine; None where it writes files here."""
    named = [variable for variable in SERVERS.get(name, ()) if os.environ.get(variable)]
    return next((one for one in named if one not in HERE or not HERE[one].match(os.environ[one])), None)


def require_trackers(names: Sequence[str]) -> None:
    """Refuse at the start (exit 3) where a tracker's package is missing."""
    absent = [name for name in names if find_spec(PACKAGES[name]) is None]
    if absent:
        raise SokaError(
            f"The package of tracker {', '.join(absent)} is not installed.",
            where="train.trackers",
            hint=f"pip install {' '.join(PACKAGES[name] for name in absent)} (or 'soka-cli[trackers]'), or drop it from train.trackers",
            exit_code=ExitCode.ENVIRONMENT,
        )


class Mirrors:
    """The trackers of one training. What a tracker raises is said once, and ends that tracker alone.

    A session is a run of its own in every tracker and begins with the rows that metrics.jsonl holds, so that after a resume the newest
    run shows the whole curve, without gaps or repeats.

    Args:
        names: which ones.
        run: what the run is called there.
        folder: where trackers that write files put them.
        rows: those of metrics.jsonl so far, cut back to the step that training goes on from.
        offline: nothing is sent.
    """

    def __init__(
        self, names: Sequence[str], *, run: str, folder: Path, rows: Sequence[dict[str, Any]], offline: bool, reporter: Reporter
    ) -> None:
        self.reporter = reporter
        self.open: dict[str, Tracker] = {}
        for name in names:
            if offline and (variable := server_variable(name)) is not None:
                reporter.warn(f"Tracker {name} is left out: {variable} has it send elsewhere, and --offline sends nothing.")
            else:
                self._guarded(name, partial(self._start, name, run, folder / name, rows, offline))

    def _start(self, name: str, run: str, folder: Path, rows: Sequence[dict[str, Any]], offline: bool) -> None:
        remove(folder)  # of an earlier session, whose last steps may have been taken back
        tracker = OPENERS[name](run, folder, offline)
        tracker.start()
        for row in rows:
            tracker.log(numbers(row), row["step"])
        self.open[name] = tracker

    def log(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl, which is on the disk by now."""
        for name, tracker in list(self.open.items()):
            self._guarded(name, partial(tracker.log, numbers(row), row["step"]))

    def close(self) -> None:
        for name, tracker in list(self.open.items()):
            self._guarded(name, tracker.finish)
        self.open.clear()

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # trackio prints, and standard output is for results
                action()
        except Exception as error:
            self.open.pop(name, None)
            logging.getLogger(LOGGER).warning("tracker %s failed", name, exc_info=error)
            why = f"{type(error).__name__}: {str(error).strip()[:200]}"
            self.reporter.warn(f"Tracker {name} failed and is left out ({why}); training goes on.")


def numbers(row: dict[str, Any]) -> dict[str, int | float]:
    """The row's figures, without its step; what a row has for each module is called `<name>/<module>`."""
    flat: dict[str, int | float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{module}": figure for module, figure in value.items()}
        elif isinstance(value, int | float) and name != "step":
            flat[name] = value
    return flat
