"""Ways of isolating a process, strongest first: how each is started. Whether it works here is for isolation.py to find out."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from soka_cli.sandbox import bundle, system_calls
from soka_cli.sandbox.inside import landlock
from soka_cli.sandbox.interpreter import DEVICES, interpreter
from soka_cli.sandbox.limits import DISK, PROCESSES, RESOURCES

LayerName = Literal["bubblewrap", "namespaces", "landlock", "none"]
Role = Literal["program", "bench", "probe"]

FIRST_FREE_USER, FREE_USERS = 0x70000000, 0x0FFFFFFF  # ids that no distribution gives to anybody
NOBODY = 65534
COUNTING_KERNEL = (5, 14)  # from here on a user namespace counts its own processes
_numbers = itertools.count()


@dataclass(frozen=True)
class Layer:
    """One way of isolating.

    Attributes:
        name: as verdicts and reports have it.
        user_space: whether namespaces need a user namespace of their own, because soka may not make them.
        change_user: whether a sandbox becomes another user (soka is root).
        see_all: whether it then keeps the right to read what Landlock lets it read, because the interpreter lies in a private folder.
        size: whether bubblewrap can bound its tmpfs.
    """

    name: LayerName
    user_space: bool = False
    change_user: bool = False
    see_all: bool = False
    size: bool = True

    @property
    def own_pids(self) -> bool:
        """Whether a sandbox has a pid namespace and a file system of its own."""
        return self.name in ("bubblewrap", "namespaces")

    @property
    def counts_alone(self) -> bool:
        """Whether the limit of processes counts a sandbox's own: it has a user of its own, or a user namespace that counts."""
        return self.change_user or (self.user_space and kernel() >= COUNTING_KERNEL)

    def command(
        self, role: Role, channel: int, filter_end: int | None, information: int, known: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The words that start a sandbox.

        Args:
            channel: descriptor of our side's socket, as the new process inherits it.
            filter_end, information: descriptors from which bubblewrap reads its filter (None for none) and to which it writes its
                child's pid.
            known: what a probe tries.
        """
        python = interpreter()
        plan = {
            "layer": self.name,
            "role": role,
            "channel": channel,
            "others": [bundle.descriptor(), information, *([filter_end] if filter_end is not None else [])],
            "parent": os.getpid(),
            "search": python.search,
            "known": known,
            "user_space": self.user_space,
            "root": {"readable": python.readable, "links": python.links, "disk": DISK} if self.name == "namespaces" else None,
            "confinement": self.confinement(),
        }
        words = python.command(json.dumps(plan))
        return [*self.bubblewrap(filter_end, information), *words] if self.name == "bubblewrap" else words

    def confinement(self) -> dict[str, Any]:
        """What the process gives up by itself (inside/confinement.py)."""
        own_filter = self.filter() if self.name in ("namespaces", "landlock") else None
        python = interpreter()
        files = {"readable": [*python.readable, *(path for path, _ in python.links)], "listed": python.search, "devices": DEVICES}
        return {
            "user": unused_user() if self.change_user else None,
            "see_all": self.see_all,
            "limits": RESOURCES | {"RLIMIT_NPROC": PROCESSES + (0 if self.counts_alone else threads_of_user())},
            "landlock": files if self.name == "landlock" else None,
            "filter": own_filter.hex() if own_filter is not None else None,
        }

    def filter(self) -> bytes | None:
        """The seccomp program. Where the sandbox has the machine's own pids and files in sight, it refuses more."""
        if self.own_pids:
            return system_calls.program()
        signals = () if landlock.version() >= landlock.SCOPES_ABI else system_calls.SIGNALS  # Landlock itself says whom to signal
        return system_calls.program(*signals, *system_calls.GROUPS, *system_calls.ATTRIBUTES)

    def bubblewrap(self, filter_end: int | None, information: int) -> list[str]:
        python = interpreter()
        temporary = [*(["--size", str(DISK)] if self.size else []), "--perms", "1777", "--tmpfs"]
        parents = sorted({str(parent) for path in python.readable for parent in list(Path(path).parents)[:-1]})
        shown = [word for path in parents for word in ("--perms", "0755", "--dir", path)]  # else for bwrap's own user alone
        shown += [word for path in python.readable for word in ("--ro-bind", path, path)]
        linked = [word for path, target in python.links for word in ("--symlink", target, path)]
        user = ["--unshare-user"] if self.user_space else ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        return [
            str(shutil.which("bwrap")), *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
            "--die-with-parent", "--new-session", "--info-fd", str(information),
            *(["--seccomp", str(filter_end)] if filter_end is not None else []),
            *temporary, "/tmp", *shown, *linked, "--proc", "/proc", "--dev", "/dev", *temporary, "/dev/shm",
            "--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp",
        ]  # fmt: skip


def kernel() -> tuple[int, int]:
    """Version of the running kernel."""
    first, second = os.uname().release.split(".")[:2]
    return int(first), int("".join(itertools.takewhile(str.isdigit, second)) or 0)


def threads_of_user() -> int:
    """How many processes and threads this user has running now."""
    user, count = os.geteuid(), 0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            if process.name.isdigit() and process.stat().st_uid == user:
                count += sum(1 for _ in (process / "task").iterdir())
    return count


def unused_user() -> int:
    """A user id that no other sandbox has, so that the limit of processes counts each for itself; nobody where ids are few."""
    wanted = FIRST_FREE_USER + ((os.getpid() << 8 | next(_numbers) & 0xFF) & FREE_USERS)
    try:
        spans = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()]
    except OSError:
        return NOBODY
    return wanted if any(first <= wanted < first + count for first, _, count in spans) else NOBODY
