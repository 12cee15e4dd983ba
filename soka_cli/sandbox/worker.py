"""Judges one program after another: a sandbox for each, started while the one before is judged, and one process that runs the tests."""

import math
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Any

from soka_cli.sandbox.inside.channel import Message, ProtocolError
from soka_cli.sandbox.layer import Layer
from soka_cli.sandbox.process import Sandbox, StartError
from soka_cli.sandbox.verdict import Mode, Program, Verdict
from soka_cli.sandbox.watch import usage

LOOK_EVERY = 0.05  # seconds between looks at what a program uses


class Worker:
    """One judge. Belongs to the thread that made it.

    Args:
        layer: how programs, and the process that runs the tests, are isolated.
        spare: sandboxes that wait for the programs to come.
        stopped: ends the judging early when it is set.
    """

    def __init__(self, layer: Layer, spare: int = 1, stopped: threading.Event | None = None) -> None:
        self.layer = layer
        self.spare = spare
        self.stopped = stopped or threading.Event()
        self._waiting = [Sandbox(layer, "program")]
        self._bench: Sandbox | None = Sandbox(layer, "bench")
        self._bench_ready = False

    def judge(self, program: Program) -> Verdict:
        """The verdict on one program; its sandbox is gone when this returns."""
        verdict = self._attempt(program, "separate")
        return verdict if verdict is not None else self._attempt(program, "in-process") or Verdict("error", "no verdict")

    def close(self) -> None:
        """End all that still waits."""
        for sandbox in [*self._waiting, *([self._bench] if self._bench is not None else [])]:
            sandbox.kill()
        self._waiting.clear()
        self._bench = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _attempt(self, program: Program, mode: Mode) -> Verdict | None:
        """A verdict, or None where the tests turn out to need the program's own process."""
        try:
            bench, sandbox = self._bench_process(), self._take()
        except StartError as error:
            self._drop_bench()
            return Verdict("error", f"no sandbox: {error}", layer=self.layer.name)
        start = time.monotonic()
        try:
            found = self._try(bench, sandbox, program, mode)
            seconds, printed = time.monotonic() - start, sandbox.printed()
        finally:
            sandbox.kill()
        if found["verdict"] == "again":
            return None
        if found["verdict"] not in ("pass", "fail", "timeout"):
            found = {"verdict": "error", "why": found.get("why")}
        return Verdict(found["verdict"], printable(found["why"]), found.get("mode"), self.layer.name, seconds, printable(printed))

    def _take(self) -> Sandbox:
        """A sandbox that is ready, with others on the way for the programs that follow."""
        sandbox = self._waiting.pop(0) if self._waiting else Sandbox(self.layer, "program")
        while len(self._waiting) < self.spare:
            self._waiting.append(Sandbox(self.layer, "program"))
        try:
            return up(sandbox)
        except StartError:  # one that waited may have been killed from outside
            return up(Sandbox(self.layer, "program"))

    def _bench_process(self) -> Sandbox:
        if self._bench is None:
            self._bench = Sandbox(self.layer, "bench")
        if not self._bench_ready:
            up(self._bench)
            self._bench_ready = True
        return self._bench

    def _drop_bench(self) -> None:
        if self._bench is not None:
            self._bench.kill()
        self._bench, self._bench_ready = None, False

    def _try(self, bench: Sandbox, sandbox: Sandbox, program: Program, mode: Mode) -> Message:
        """Hand the program over and keep the clock."""
        deadline = time.monotonic() + program.timeout
        try:
            socket.send_fds(bench.end, [b"j"], [sandbox.end.fileno()])
            bench.channel.send(job(program, mode))
            sandbox.end.close()
            found = self._wait(bench, sandbox, deadline)
        except (ProtocolError, OSError) as error:
            self._drop_bench()
            return {"verdict": "error", "why": f"the judging process is gone: {error}"}
        except BaseException:
            self._drop_bench()
            raise
        if "mode" not in found:  # the clock or a limit spoke, so the judging process still waits for the program
            self._drop_bench()
            found["mode"] = mode
        return found

    def _wait(self, bench: Sandbox, sandbox: Sandbox, deadline: float) -> Message:
        with selectors.DefaultSelector() as selector:
            selector.register(bench.end, selectors.EVENT_READ)
            selector.register(sandbox.output, selectors.EVENT_READ)
            looked = time.monotonic()
            while (now := time.monotonic()) < deadline:
                for key, _ in selector.select(min(LOOK_EVERY, deadline - now)):
                    if key.fileobj is bench.end:
                        return bench.channel.receive() or {"verdict": "error", "why": "the judging process ended"}
                    if not sandbox.drain():
                        selector.unregister(sandbox.output)
                if self.stopped.is_set():
                    return {"verdict": "error", "why": "stopped"}
                if now - looked >= LOOK_EVERY:
                    looked = now
                    if excess := usage(sandbox.process.pid).excess:
                        return {"verdict": "fail", "why": excess}
        return {"verdict": "timeout", "why": "no verdict within the time limit"}


def up(sandbox: Sandbox) -> Sandbox:
    """The sandbox once it is ready; killed if it does not come up."""
    try:
        return sandbox.ready()
    except BaseException:
        sandbox.kill()
        raise


def printable(text: object) -> str:
    """Words of a program's, without what a terminal would obey or a file cannot hold."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in str(text))


def job(program: Program, mode: Mode) -> dict[str, Any]:
    """What the judging process is told; processor time is bounded well above the wall clock, for what outlives it."""
    return {
        "code": program.code,
        "setup": program.setup,
        "tests": list(program.tests),
        "mode": mode,
        "seconds": 4 * math.ceil(program.timeout) + 5,
    }
