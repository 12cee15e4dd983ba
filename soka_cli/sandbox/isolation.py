"""Which layer works on this machine, found out by trying what a program must not be able to."""

import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from soka_cli.sandbox import system_calls
from soka_cli.sandbox.inside import landlock
from soka_cli.sandbox.inside.channel import ProtocolError
from soka_cli.sandbox.interpreter import ENVIRONMENT, interpreter
from soka_cli.sandbox.layer import Layer, LayerName
from soka_cli.sandbox.limits import DISK, MEBIBYTE, MEMORY, PROCESSES, START
from soka_cli.sandbox.process import Sandbox, StartError

NAMES: tuple[LayerName, ...] = ("bubblewrap", "namespaces", "landlock")
UNSAFE = Layer("none")
HARMLESS = {*ENVIRONMENT, "PWD", "LC_CTYPE", "SHLVL", "_"}
ESCAPES = {
    "reads": "a file outside can be read",
    "writes": "a file outside can be written",
    "connects": "a TCP connection goes through",
    "sends": "a UDP packet goes through",
    "signals": "a process outside can be signalled",
}


@dataclass(frozen=True)
class Isolation:
    """What isolates programs here.

    Attributes:
        layer: the strongest layer whose probe let nothing through; None where there is none.
        report: what the probe said (inside/probe.py).
        refused: stronger layers and why each does not work here.
    """

    layer: Layer | None
    report: dict[str, Any]
    refused: tuple[tuple[str, str], ...]

    @property
    def name(self) -> LayerName:
        return self.layer.name if self.layer is not None else "none"


@cache
def find_isolation(*names: LayerName) -> Isolation:
    """The strongest of the named layers that works; all of them where none is named. Asks the machine once in a process."""
    wanted = names or NAMES
    refused: dict[LayerName, str] = {}
    for layer in candidates():
        if layer.name in wanted:
            report, trouble = try_layer(layer)
            if not trouble:
                return Isolation(layer, report, tuple(reasons(wanted[: wanted.index(layer.name)], refused)))
            refused[layer.name] = trouble
    return Isolation(None, {}, tuple(reasons(wanted, refused)))


def reasons(names: Iterable[LayerName], refused: Mapping[LayerName, str]) -> Iterator[tuple[str, str]]:
    """Each layer with why it does not work here."""
    for name in names:
        yield name, refused.get(name) or absent(name)


def candidates() -> Iterator[Layer]:
    """Layers in the order of their strength, and each in its variants: root makes namespaces without a user namespace."""
    root = os.geteuid() == 0
    if shutil.which("bwrap"):
        size = bubblewrap_bounds_tmpfs()
        if root:
            yield Layer("bubblewrap", change_user=True, size=size)
        yield Layer("bubblewrap", user_space=True, size=size)
    if root:
        yield Layer("namespaces", change_user=True)
    yield Layer("namespaces", user_space=True)
    if landlock.version() and system_calls.program() is not None:
        if root:
            yield Layer("landlock", change_user=True)
            yield Layer("landlock", change_user=True, see_all=True)
        else:
            yield Layer("landlock")


@cache
def bubblewrap_bounds_tmpfs() -> bool:
    """Whether bubblewrap knows --size (0.7 and later)."""
    return "--size" in subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False).stdout


def bubblewrap_version() -> str:
    said = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False).stdout.split()
    return said[-1] if said else "of unknown version"


def absent(name: str) -> str:
    """Why a layer was not even tried."""
    if name == "bubblewrap":
        return "bwrap is not installed"
    if name == "landlock" and landlock.version():
        return f"system calls of {platform.machine()} are not known here"
    return "the kernel has none, or refuses it"


def try_layer(layer: Layer) -> tuple[dict[str, Any], str]:
    """The probe's report, and why the layer is not to be trusted; empty if nothing got through."""
    with tempfile.TemporaryDirectory(prefix="soka-probe-") as folder, socket.create_server(("127.0.0.1", 0)) as server:
        file = Path(folder, "canary")
        file.write_text("not for a sandbox's eyes", encoding="utf-8")
        for path in (Path(folder), file):
            path.chmod(0o777)  # so that it is the layer that keeps a program off, not the owner
        known = {"file": str(file), "port": server.getsockname()[1], "pid": os.getpid(), "space": layer.own_pids}
        sandbox = Sandbox(layer, "probe", known)
        try:
            report = sandbox.ready().receive(START)
        except (StartError, ProtocolError, OSError) as error:
            return {}, last_line(str(error))
        finally:
            sandbox.kill()
    if report is None:
        return {}, "the probe ended without a report"
    found = [words for escape, words in ESCAPES.items() if report[escape]]
    if secret := set(report["environment"]) - HARMLESS:
        found.append(f"the environment has {', '.join(sorted(secret))}")
    return report, "; ".join(found)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1]


def summary(found: Isolation) -> str:
    """One line: what isolates programs, and the Python that runs them."""
    python = f"Python {platform.python_version()} ({interpreter().executable})"
    if found.layer is None:
        return f"no isolation; {python}"
    name = f"bubblewrap {bubblewrap_version()}" if found.name == "bubblewrap" else found.name
    user = "a user that nobody else is" if found.layer.change_user else f"user {found.report['user']}"
    return f"{name}, as {user}; {python}"


def stops(found: Isolation) -> tuple[str, ...]:
    """What the active layer stops."""
    if found.layer is None:
        return ()
    bounds = f"{MEMORY // MEBIBYTE} MiB of memory, {PROCESSES} processes and threads, wall clock and processor time"
    files = {
        True: f"files: only the interpreter is there, read-only, and {DISK // MEBIBYTE} MiB of /tmp in memory",
        False: "files: only the interpreter can be opened, and nothing written (Landlock)",
    }[found.layer.own_pids]
    processes = {
        True: "processes: none but its own are there (pid namespace)",
        False: "processes: none but its own can be signalled or traced",
    }[found.layer.own_pids]
    ways = {
        "sockets are refused (seccomp)": system_calls.program() is not None,
        "there is none (network namespace)": found.layer.own_pids,
    }
    network = f"network: {', and '.join(way for way, holds in ways.items() if holds)}"
    return files, processes, network, f"resources: {bounds}", "verdicts: asserts run in another process, which the program cannot reach"


def passes(found: Isolation) -> tuple[str, ...]:
    """What the active layer does not stop."""
    if found.layer is None:
        return ("anything: a program can do whatever the user can",)
    through = [
        "errors of the kernel, which the program shares with this machine",
        "what can be learnt from timing, from the interpreter's files and from the machine's name and size",
        "use of all processor cores up to the time limit",
    ]
    if not found.layer.own_pids:
        through.append("asking whether a file exists, how large it is and where a link points (Landlock does not cover it)")
    if found.report["processes"] is None:
        through.append("a burst of processes: the limit does not bind here, so they are counted every 50 ms and killed")
    if found.layer.name == "bubblewrap" and not found.layer.size:
        through.append("filling memory with files up to the machine's default for a tmpfs: this bubblewrap cannot bound it")
    return tuple(through)


def advice(found: Isolation) -> str:
    """How to get more, for a person; empty where bubblewrap is at work."""
    if found.name == "bubblewrap":
        return ""
    why = dict(found.refused).get("bubblewrap", "")
    if "not installed" in why:
        return "apt-get install bubblewrap (or dnf, pacman, zypper install bubblewrap); it needs no configuration"
    if "uid map" in why or "RTM_NEWADDR" in why or "Permission denied" in why:
        return (
            "this system keeps unprivileged programs from making user namespaces (Ubuntu 23.10 and later do): allow bubblewrap with an "
            "AppArmor profile, e.g. /etc/apparmor.d/bwrap: abi <abi/4.0>, include <tunables/global> profile bwrap /usr/bin/bwrap "
            "flags=(unconfined) { userns, }; then: systemctl reload apparmor"
        )
    return "in a container, allow user namespaces, or run soka outside of it; bwrap says: " + (why or "nothing")


def describe(unsafe: bool = False) -> tuple[str, ...]:
    """What is active, what it stops and what not, and how to get more: lines for a log."""
    found = find_isolation()
    lines = [f"sandbox: {summary(found)}"]
    lines += [f"  {name} does not work here: {why}" for name, why in found.refused]
    lines += [f"  stops {what}" for what in stops(found)]
    lines += [f"  does not stop {what}" for what in passes(found)]
    if more := advice(found):
        lines.append(f"  for more: {more}")
    if found.layer is None:
        lines.append("  programs run all the same (--unsafe-execution)" if unsafe else "  no program is run")
    return tuple(lines)
