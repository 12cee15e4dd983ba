"""Runs a verb's body and turns whatever happens into an exit code and something a person can use."""

import logging
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from soka_cli.cli.render import Renderer
from soka_cli.cli.request import Request
from soka_cli.errors import ExitCode, SokaError

if TYPE_CHECKING:
    from soka_cli.run.reporter import Reporter
    from soka_cli.stages.outcome import Outcome


CHATTY = ("bitsandbytes", "torchao", "huggingface_hub")


def answer(request: Request, body: Callable[["Reporter"], "Outcome | None"]) -> int:
    """Run `body`, show its outcome or its error, and return the exit code.

    Among several processes the first shows the outcome, and whichever fails first its error. A body without an outcome has
    left it to processes that it started.
    """
    from soka_cli.run.interrupt import Interrupted, terminations_interrupt
    from soka_cli.run.resources import resource_error
    from soka_cli.stages.launch import Worker, WorkersFailed, end_with_launcher, launched_here

    worker = Worker.here()
    renderer = Renderer(json=request.json, quiet=request.quiet or worker.rank > 0, verbose=request.verbose)
    set_libraries(request)
    try:
        with terminations_interrupt():
            end_with_launcher()
            outcome = body(renderer.reporter)
            if outcome is not None and worker.rank == 0:
                renderer.outcome(outcome)
            return ExitCode.DONE if outcome is None else outcome.exit_code
    except SokaError as error:
        shown = error
    except WorkersFailed as failure:
        return failure.code
    except KeyboardInterrupt as interrupt:
        shown = interruption(request, ExitCode.TERMINATED if isinstance(interrupt, Interrupted) else ExitCode.INTERRUPTED)
        if launched_here():  # the soka that started this process says it, once
            return shown.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.DONE
    except Exception as error:  # the last line of defence: a bug becomes one line and a traceback in a file
        shown = resource_error(error, Path.cwd()) or bug(error)
    if worker.speaks_first():
        renderer.error(shown)
    return shown.exit_code.value


def set_libraries(request: Request) -> None:
    """Tell the libraries how loud and how connected to be, before any of them is imported."""
    if request.offline:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
            os.environ[name] = "1"
    if request.verbose:
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
        return
    logging.captureWarnings(True)  # what the user should know comes through the reporter
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def interruption(request: Request, code: ExitCode) -> SokaError:
    return SokaError(
        "interrupted" if code is ExitCode.INTERRUPTED else "terminated",
        why="what was finished is kept in the run directory",
        hint=f"{request.command}   (goes on where it stopped)",
        exit_code=code,
    )


def bug(error: Exception) -> SokaError:
    """The traceback goes to the stage's log, or a file of its own, without local variables: they may hold secrets."""
    logged = [note.removeprefix("log: ") for note in getattr(error, "__notes__", ()) if note.startswith("log: ")]
    first = (str(error).splitlines() or [""])[0]
    return SokaError(
        f"a bug in soka: {type(error).__name__}: {first}",
        where=f"traceback in {logged[0] if logged else write_traceback(error)}",
        hint="report it with that file, the recipe and soka doctor --json",
        exit_code=ExitCode.BUG,
    )


def write_traceback(error: Exception) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="soka-bug-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf8") as log:
        log.write("".join(traceback.format_exception(error)))
    return Path(name)
