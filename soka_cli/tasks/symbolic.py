"""Equality of mathematical answers, decided in a worker process that is killed when an answer takes too long or too much.

sympy can loop for hours or fill the memory over a line of LaTeX, and a signal does not stop it inside one long operation. So
each verdict has processor seconds (not wall seconds, which would make a busy machine judge otherwise) and the worker has a memory limit.
"""

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import soka_cli
from soka_cli.errors import ExitCode, SokaError

SECONDS = {"symbolic": 5.0, "math_verify": 40.0, "minerva": 10.0}  # processor time; the harness's own two end themselves at 5 s a step
WALL = 12  # times that long the worker may take by the clock, where it waits for a processor
START_SECONDS = 120
INTEGER = re.compile(r"-?[0-9]{1,30}")  # two of these need no process
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONHOME")
POLL = 0.05
TRIES = 2  # a worker may be killed by others, e.g. for the machine's memory


def symbolic_equal(gold: str, answer: str) -> tuple[bool, str | None]:
    """Whether two bare answers are the same mathematical object, and why not where the judge can say more than "no".

    Math-Verify with its known false verdicts taken back, `gold` first: what it treats otherwise on each side (an inequality for
    an interval) it may do for the gold answer only. An answer that is refused, too slow or too large is not equal.
    """
    if gold.strip() == answer.strip():
        return True, None
    if INTEGER.fullmatch(gold.strip()) and INTEGER.fullmatch(answer.strip()):
        return int(gold) == int(answer), None
    return WORKER.ask("symbolic", gold, answer)


def math_verify_equal(solution: str, completion: str) -> tuple[bool, str | None]:
    """The metric math_verify of lm-evaluation-harness's minerva_math: whole texts, Math-Verify as it comes."""
    return WORKER.ask("math_verify", solution, completion)


def minerva_equal(answer: str, gold: str) -> tuple[bool, str | None]:
    """The equality of lm-evaluation-harness's minerva_math of two normalised answers."""
    return WORKER.ask("minerva", answer, gold)


class Worker:
    """One worker process, started at the first question and again after each death. Safe for use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0

    def ask(self, judge: str, first: str, second: str) -> tuple[bool, str | None]:
        """The verdict on two texts; one that killed its worker is not equal.

        Raises:
            SokaError: exit 3 where no worker starts.
        """
        with self.lock:
            question = {"judge": judge, "first": first, "second": second, "seconds": SECONDS[judge]}
            for _ in range(TRIES):
                answer = _ask(self._running(), question)
                if isinstance(answer, dict):
                    return bool(answer["equal"]), answer["why"]
                self._end()
                if answer is not None:
                    return False, answer
            return False, "the judge's process died of it"

    def _running(self) -> subprocess.Popen[bytes]:
        """The worker of this process (a fork's inherited one is left to its owner), started where there is none."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self._end()
            self.process, self.owner = _start(), os.getpid()
        return self.process

    def _end(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                _close(_stream(stream))
        self.process = None

    def close(self) -> None:
        """End the worker; the next question starts another."""
        with self.lock:
            self._end()


def _ask(process: subprocess.Popen[bytes], question: dict[str, Any]) -> dict[str, Any] | str | None:
    """As `_answer`, of a question that is sent first."""
    used = _processor_seconds(process.pid)
    try:
        _stream(process.stdin).write((json.dumps(question) + "\n").encode())
        _stream(process.stdin).flush()
    except BrokenPipeError:
        return None
    return _answer(process, question["seconds"], used)


WORKER = Worker()
atexit.register(WORKER.close)


def _start() -> subprocess.Popen[bytes]:
    """A worker that has loaded sympy. Its environment holds what Python needs to start and none of the user's secrets."""
    package = str(Path(soka_cli.__file__).resolve().parents[1])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "soka_cli.tasks.symbolic_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
        start_new_session=True,
    )
    if not isinstance(_answer(process, START_SECONDS, 0.0), dict):
        process.kill()
        raise SokaError(
            "The process that judges mathematical answers does not start.",
            where=f"{sys.executable} -m soka_cli.tasks.symbolic_worker",
            why="sympy, math-verify or antlr4-python3-runtime 4.11 is missing, or memory is",
            hint="run that command to see its message, then install what is missing: pip install soka-cli",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return process


def _answer(process: subprocess.Popen[bytes], seconds: float, used: float) -> dict[str, Any] | str | None:
    """The worker's next line; a reason once it has used more than `seconds` since `used`; None where it is gone."""
    stream, started = _stream(process.stdout), time.monotonic()
    while True:
        if select.select([stream], [], [], POLL)[0]:
            line = stream.readline()
            return dict(json.loads(line)) if line.endswith(b"\n") else None
        if _processor_seconds(process.pid) - used > seconds or time.monotonic() - started > WALL * seconds:
            return f"it takes more than {seconds:g} seconds"


def _processor_seconds(pid: int) -> float:
    """Processor time that a process has used; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stream(stream: Any) -> Any:
    assert stream is not None  # both ends were asked for
    return stream


def _close(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return
