"""The first thing that runs in a sandbox: give up what has to be given up, then serve one role.

Run as `python -c LOADER PLAN` (see bundle.py), PLAN being a JSON object: `layer`, `role`, `channel` (the descriptor to keep), `others`
(those to close), `parent` (the pid that started this), `confinement` (see confinement.confine), `root` and `user_space` (see mounts.build
and mounts.leave), `search` (folders to import from), and for role probe `known`.
"""

import builtins
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .channel import Channel, ProtocolError
from .confinement import confine
from .kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, process_control
from .peer import EndedError


def main() -> None:
    plan = json.loads(sys.argv[1])
    del sys.argv[1:]
    for descriptor in plan["others"]:
        with contextlib.suppress(OSError):  # bubblewrap closes those that it reads and writes
            os.close(descriptor)
    work = role(plan)
    if plan["layer"] == "bubblewrap":
        become(plan, work)
    else:
        watch(plan, work)


def role(plan: Mapping[str, Any]) -> Callable[[Channel], None]:
    """What the confined process is for. Its module is imported here, while everything can still be read."""
    if plan["role"] == "program":
        from .program import Program

        return lambda channel: Program(channel).peer.serve_all()
    if plan["role"] == "bench":
        from .bench import Bench

        return lambda channel: Bench(channel).serve_all()
    from .probe import report

    return lambda channel: channel.send(report(plan["known"]))


def watch(plan: Mapping[str, Any], work: Callable[[Channel], None]) -> None:
    """Start the confined process and see to it that nothing of it is left when it or this process is told to end.

    SIGTERM, which also comes when soka dies, kills all of it; so does the end of the confined process itself.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    process_control(PR_SET_CHILD_SUBREAPER, 1)
    process_control(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != plan["parent"]:  # soka ended before the line above
        os._exit(0)
    if plan["layer"] == "namespaces":
        from .mounts import leave

        leave(plan["user_space"])
    child = os.fork()
    if child == 0:
        os.setsid()
        become(plan, work)
    os.close(plan["channel"])
    while True:
        if signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGTERM or ended(child):
            break
    kill_all(child, own_space=plan["layer"] == "namespaces")
    os._exit(0)


def ended(child: int) -> bool:
    """Whether the confined process is dead; other children are orphans of it, and are reaped on the way."""
    while True:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        if found.si_pid == child:
            return True
        os.waitpid(found.si_pid, 0)


def kill_all(child: int, own_space: bool) -> None:
    """Kill the confined process, its group and whatever else became ours, and wait for the last of it.

    The first process of a pid namespace takes all others of it along.
    """
    kill(child, group=not own_space)
    while True:
        try:
            os.waitpid(-1, 0 if own_space else os.WNOHANG)
        except ChildProcessError:
            return
        for orphan in () if own_space else children():
            kill(orphan, group=False)


def kill(process: int, *, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(process, signal.SIGKILL)


def children() -> list[int]:
    """The living children of this process, orphans of the confined process among them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:  # a kernel without the list
        return []


def become(plan: Mapping[str, Any], work: Callable[[Channel], None]) -> None:
    """Turn into the confined process, say so and do its work; does not return."""
    status = 1
    try:
        if plan["layer"] == "namespaces":
            from .mounts import build

            build(**plan["root"])
        confine(plan["confinement"])
        if plan["layer"] != "bubblewrap":
            process_control(PR_SET_PDEATHSIG, signal.SIGKILL)  # another user than before: the kernel forgets an earlier one
        if plan["layer"] == "namespaces":
            step_aside()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        sys.path.extend(plan["search"])
        builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # the module site, which brings them, is left out
        channel = Channel(plan["channel"])
        channel.send({"ready": os.getpid()})
        work(channel)
        status = 0
    except (ProtocolError, EndedError):
        pass
    except Exception as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def step_aside() -> None:
    """Leave pid 1 to a process that only waits, so that the program is an ordinary process that any signal can end."""
    program_process = os.fork()
    if program_process:
        os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        while os.waitpid(-1, 0)[0] != program_process:
            pass
        os._exit(0)
