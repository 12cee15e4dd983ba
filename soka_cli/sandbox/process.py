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
        self._pidfd: int | None = None
        self._information: int | None = None
        self._heard = bytearray()
        self._devnull = os.open(os.devnull, os.O_WRONLY)
        ours, theirs = socket.socketpair()
        self.end = ours
        self.channel = Channel(ours.fileno())
        self.output, printed = os.pipe()
        os.set_blocking(self.output, False)
        inherited = [theirs.fileno(), bundle.descriptor()]
        filter_end = information = -1
        if layer.name == "bubblewrap":
            filter_end, self._information, information = filled_pipe(layer.filter() or b""), *os.pipe()
            inherited += [filter_end, information]
        try:
            self.process = subprocess.Popen(
                layer.command(role, theirs.fileno(), filter_end, information, known),
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is soka's to handle
            )
        finally:
            theirs.close()
            for descriptor in {printed, filter_end, information} - {-1}:
                os.close(descriptor)

    def ready(self) -> "Sandbox":
        """Wait until the confined process says so; StartError with what it said instead."""
        try:
            if self._information is not None:
                self._find_first_process(self._information)
            message = self.receive(START)
        except (OSError, ProtocolError, ValueError, KeyError) as error:
            raise StartError(self.printed() or str(error)) from error
        if message is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
            raise StartError(self.printed() or f"it ended with status {self.process.returncode}")
        return self

    def receive(self, patience: float) -> Message | None:
        """The next message, None at the end; TimeoutError if it takes longer than `patience` seconds to begin."""
        if not select.select([self.end], [], [], patience)[0]:
            raise TimeoutError(f"nothing came within {patience:g} s")
        return self.channel.receive()

    def _find_first_process(self, information: int) -> None:
        """bubblewrap tells the pid of its namespace's first process, whose death is that of all others."""
        text = bytearray()
        while part := os.read(information, PIECE):
            text += part
        if text:
            with contextlib.suppress(OSError):  # dead already
                self._pidfd = os.pidfd_open(json.loads(text)["child-pid"])

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
        while len(self._heard) < OUTPUT and select.select([self.output], [], [], 0)[0] and self.drain():
            pass
        return self._heard.decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """End all that runs in the sandbox, and return when it is gone. Killing twice is fine."""
        if self.output < 0:
            return
        if self.process.poll() is None:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.end.close()
        for descriptor in (self.output, self._devnull, self._pidfd, self._information):
            if descriptor is not None:
                os.close(descriptor)
        self.output = -1


def filled_pipe(content: bytes) -> int:
    """A descriptor from which `content` can be read, less than a pipe holds."""
    end, start = os.pipe()
    os.write(start, content)
    os.close(start)
    return end
