"""System calls that Python has no name for."""

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """The result of a system call; OSError where it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def system_call(number: int, *arguments: object) -> int:
    """syscall(2), for calls that libc does not wrap."""
    return checked(_libc.syscall(ctypes.c_long(number), *arguments))


def process_control(option: int, *arguments: int) -> None:
    """prctl(2) with whole numbers."""
    words = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    checked(_libc.prctl(option, *words))


def unshare(flags: int) -> None:
    """Give this process namespaces of its own; a pid namespace begins with its next child."""
    checked(_libc.unshare(flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [text.encode() if text is not None else None for text in (source, target, kind)]
    checked(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() if data is not None else None))


def unmount(target: str, flags: int) -> None:
    checked(_libc.umount2(target.encode(), flags))


def pivot_root(new: str, old: str) -> None:
    """Make the mount at `new` the root and put the old root at `old`."""
    system_call(PIVOT_ROOT[os.uname().machine], new.encode(), old.encode())


def install_filter(program: bytes) -> None:
    """Put this process and all it starts under a seccomp filter; needs no_new_privs or CAP_SYS_ADMIN."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    buffer = ctypes.create_string_buffer(program, len(program))
    header = Program(len(program) // 8, ctypes.addressof(buffer))
    mode_filter = 2
    checked(_libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(mode_filter), ctypes.byref(header), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def keep_capabilities(mask: int) -> None:
    """Of all capabilities of this process keep those of `mask` (bits of the first 32) and no other."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Words(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    version = 0x20080522
    words = (Words * 2)(Words(mask, mask, 0), Words(0, 0, 0))
    checked(_libc.capset(ctypes.byref(Header(version, 0)), words))
