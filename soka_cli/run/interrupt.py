"""Signals that ask a process to end, as exceptions that let it clean up first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the process to end; as a KeyboardInterrupt it passes through `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


AGAIN = 0.05  # seconds after which a signal that came at a bad moment is sent once more


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """Raise Interrupted; a little later where it would be lost, since Python drops what is raised inside a finaliser."""
    if not is_finalising(frame):
        raise Interrupted(number)
    again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def is_finalising(frame: FrameType | None) -> bool:
    """Whether a `__del__` is running."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def in_main_thread() -> bool:
    """Python lets only the main thread change signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminations_interrupt() -> Iterator[None]:
    """Inside the block SIGTERM raises Interrupted; SIGINT stays KeyboardInterrupt. The old handler comes back at the end."""
    if not in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class PendingInterrupt:
    """A request to end that waits until the work can be left. `number` is the signal's, None as long as none came.

    Args:
        echo: seconds after the first signal in which further ones are the same request.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.number: int | None = None
        self.echo = echo
        self._first = 0.0

    def __bool__(self) -> bool:
        return self.number is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one no longer waits, unless it is an echo of the first."""
        if self.number is None:
            self.learn(number)
        elif time.monotonic() - self._first >= self.echo:
            self.deliver()

    def learn(self, number: int | None) -> None:
        """Take over a signal that another process got."""
        if self.number is None and number is not None:
            self.number, self._first = number, time.monotonic()

    def deliver(self) -> None:
        """Raise KeyboardInterrupt (SIGINT) or Interrupted (SIGTERM) if a signal came, else return."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise Interrupted(self.number)


@contextmanager
def interrupts_wait(echo: float = 0.0) -> Iterator[PendingInterrupt]:
    """Inside the block SIGINT and SIGTERM are noted, not raised: look at the yielded PendingInterrupt where the work can be left.

    A second signal is raised at once, but not within `echo` seconds of the first. What is still pending at the block's good end is
    raised there.
    """
    pending = PendingInterrupt(echo)
    if not in_main_thread():
        yield pending
        return
    before = {number: signal.signal(number, pending.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    pending.deliver()
