"""One sandbox as its parent sees it: started, spoken to, killed with all that it started."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping
from typing import Any

from soka_cli.sandbox import bundle
from soka_cli.sandbox.inside.channel import Channel, Message, ProtocolError
from soka_cli.sandbox.interpreter import ENVIRONMENT
from soka_cli.sandbox.layer import Layer, Role
from soka_cli.sandbox.limits import OUTPUT, START

PIECE = 1 << 16
PATIENCE = 5.0  # seconds until a process that was told to end is killed


class StartError(Exception):
    """A sandbox did not come up; the text is what was said."""


class Sandbox:
    """A confined process and the channel to it.

    Starting returns at once; `ready` waits until the process has given everything up. Nobody but the thread that started a sandbox
    may use it, and the sandbox dies with that thread: the kernel counts the thread as its parent.
    """

    def __init__(self, layer: Layer, role: Role, known: Mapping[str, Any] | None = None) -> None:
        self._layer = layer
        self._heard = bytearray()
        self._pidfd: int | None = None
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            self.end, end = socket.socketpair()
            self.channel = Channel(self.end.fileno())
            ours.callback(self.end.close)
            theirs.callback(end.close)
            self.output, printed = pipe(ours, theirs)
            self._information, information = pipe(ours, theirs)
            self._devnull = os.open(os.devnull, os.O_WRONLY)
            ours.callback(os.close, self._devnull)
            os.set_blocking(self.output, False)
            filter_end = filled_pipe(layer.filter(), theirs)
            inherited = [end.fileno(), bundle.descriptor(), information, *([filter_end] if filter_end is not None else [])]
            try:
                self.process = subprocess.Popen(
                    layer.command(role, end.fileno(), filter_end, information, known),
                    env=ENVIRONMENT,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    pass_fds=inherited,
                    start_new_session=True,  # Ctrl-C is soka's to handle
                )
            except OSError as error:
                raise StartError(str(error)) from error
            self._ours = ours.pop_all()

    def ready(self) -> "Sandbox":
        """Wait until the confined process says so; StartError with what it said instead."""
        try:
            message = self.receive(START)
            self._find_first_process()
        except (OSError, ProtocolError, ValueError, KeyError) as error:
            raise StartError(self.printed() or str(error)) from error
        if message is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
            raise StartError(self.printed() or f"it ended with status {self.process.returncode}")
        return self

    def receive(self, patience: float) -> Message | None:
        """The next message, None at the end; TimeoutError if it takes longer than `patience` seconds to begin."""
        if not readable(self.end.fileno(), patience):
            raise TimeoutError(f"nothing came within {patience:g} s")
        return self.channel.receive()

    def _find_first_process(self) -> None:
        """bubblewrap tells the pid of its namespace's first process, whose death is that of all others, before anything runs in it."""
        if self._layer.name != "bubblewrap" or self._pidfd is not None:
            return
        text = b""
        while not text.endswith(b"}\n") and readable(self._information, PATIENCE) and (part := os.read(self._information, PIECE)):
            text += part
        with contextlib.suppress(OSError, ValueError):  # dead already, or before it told
            self._pidfd = os.pidfd_open(json.loads(text)["child-pid"])
            self._ours.callback(os.close, self._pidfd)

    def drain(self) -> bool:
        """Read what was printed, keep the beginning and throw the rest away without looking at it; False once nothing more can come."""
        try:
            if len(self._heard) < OUTPUT:
                part = os.read(self.output, OUTPUT - len(self._heard))
                self._heard += part
                return bool(part)
            return bool(os.splice(self.output, self._devnull, 1 << 20))
        except BlockingIOError:
            return True

    def printed(self) -> str:
        """The beginning of what was printed up to now."""
        while len(self._heard) < OUTPUT and readable(self.output, 0.0) and self.drain():
            pass
        return self._heard.decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """End all that runs in the sandbox, and return when it is gone. Killing twice is fine."""
        if self.process.poll() is None:
            self._find_first_process()  # killing bubblewrap itself would leave the first process of one that is not up yet behind
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._ours.close()


def pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end is closed with `ours`, its writing end with `theirs`."""
    end, start = os.pipe()
    ours.callback(os.close, end)
    theirs.callback(os.close, start)
    return end, start


def filled_pipe(content: bytes | None, theirs: contextlib.ExitStack) -> int | None:
    """A descriptor from which `content`, less than a pipe holds, can be read; None for None."""
    if content is None:
        return None
    end, start = os.pipe()
    theirs.callback(os.close, end)
    os.write(start, content)
    os.close(start)
    return end


def readable(descriptor: int, patience: float) -> bool:
    """Whether something can be read, or the end is there, within `patience` seconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * patience))
