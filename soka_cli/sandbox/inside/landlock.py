"""Landlock: a process gives up files, TCP and, from ABI 6, signals and abstract sockets outside itself. Needs no privilege."""

import ctypes
import os
from collections.abc import Iterable

from .kernel import system_call

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ABI_VERSION = 1  # a flag of CREATE_RULESET
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = (1 << bit for bit in range(4))
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # from that ABI on, all that it knows
TCP_RIGHTS, TCP_ABI = 0b11, 4  # bind and connect
SCOPES, SCOPES_ABI = 0b11, 6  # abstract unix sockets and signals


class Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's Landlock ABI; 0 where it has none or refuses."""
    try:
        return system_call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(ABI_VERSION))
    except OSError:
        return 0


def restrict(readable: Iterable[str], listed: Iterable[str], devices: Iterable[str]) -> None:
    """From here on read and run what lies under `readable`, list `listed`, read and write `devices`, and nothing else.

    Paths that do not exist are passed over. Needs no_new_privs; cannot be undone.
    """
    abi = version()
    rights = FILE_RIGHTS[max(known for known in FILE_RIGHTS if known <= abi)]
    rules = Ruleset(rights, TCP_RIGHTS if abi >= TCP_ABI else 0, SCOPES if abi >= SCOPES_ABI else 0)
    size = 24 if abi >= SCOPES_ABI else 16 if abi >= TCP_ABI else 8
    ruleset = system_call(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for paths, allowed in ((readable, EXECUTE | READ_FILE | READ_FOLDER), (listed, READ_FOLDER), (devices, READ_FILE | WRITE_FILE)):
            for path in paths:
                _allow(ruleset, path, allowed)
        system_call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            allowed &= ~READ_FOLDER
        rule = PathRule(allowed, parent)
        system_call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
    finally:
        os.close(parent)
