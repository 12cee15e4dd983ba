"""What a process gives up before it runs anything of a model's: user, resources, files, system calls."""

import os
import resource
from collections.abc import Mapping
from typing import Any

from .kernel import (
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    install_filter,
    keep_capabilities,
    process_control,
)

READ_ANY_FILE = 1 << 2  # CAP_DAC_READ_SEARCH


def limit(name: str, wanted: int) -> None:
    """Lower a limit, soft and hard, to `wanted` or to what it is already; never raise it."""
    number = getattr(resource, name)
    _, hard = resource.getrlimit(number)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(number, (bound, bound))


def confine(plan: Mapping[str, Any]) -> None:
    """Apply `plan`: the parts that are named, in the order in which each is still allowed.

    Keys: `user` (uid and gid to become, None to stay), `see_all` (keep the right to read any file: Landlock bounds it), `limits`
    (name -> value), `landlock` (readable, listed, devices; None for none), `filter` (a seccomp program in hexadecimal, None for none).
    """
    if plan["user"] is not None:
        _become(plan["user"], plan["see_all"])
    for name, wanted in plan["limits"].items():
        limit(name, wanted)
    process_control(PR_SET_NO_NEW_PRIVS, 1)
    if plan["landlock"] is not None:
        from .landlock import restrict

        restrict(**plan["landlock"])
    if plan["filter"] is not None:
        install_filter(bytes.fromhex(plan["filter"]))


def _become(user: int, see_all: bool) -> None:
    """Another user for good; the switch takes every capability away, but for the right to read if that is kept."""
    if see_all:
        process_control(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if see_all:
        keep_capabilities(READ_ANY_FILE)
