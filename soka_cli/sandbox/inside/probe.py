"""What a confined process can still do, tried out: the report from which a layer is believed or not."""

import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

from .channel import Message


def can(attempt: Callable[[], Any]) -> bool:
    """Whether `attempt` goes through."""
    try:
        attempt()
    except (OSError, ValueError):
        return False
    return True


def report(known: Mapping[str, Any]) -> Message:
    """Try what a program must not be able to.

    Args:
        known: `file` (readable outside), `port` (where a server of 127.0.0.1 listens), `pid` (of a process outside), `space`
            (whether pids are counted anew here, so that `pid` means nothing).
    """
    folder = os.path.dirname(known["file"])
    return {
        "reads": can(lambda: open(known["file"], "rb").close()),
        "writes": can(lambda: open(f"{folder}/written", "wb").close()),
        "connects": can(lambda: socket.create_connection(("127.0.0.1", known["port"]), 1).close()),
        "sends": can(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", known["port"]))),
        "signals": not known["space"] and can(lambda: os.kill(known["pid"], 0)),
        "environment": sorted(os.environ),
        "user": os.getuid(),
        "processes": processes(),
    }


def processes() -> int | None:
    """How many children may live at a time beside this process; None if the limit does not bind."""
    bound, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    children: list[int] = []
    try:
        while len(children) <= bound:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        return len(children)
    finally:
        for child in children:
            end(child)
    return None


def end(child: int) -> None:
    """Kill a child; where signals are refused it ends with the sandbox."""
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except PermissionError:
        pass
