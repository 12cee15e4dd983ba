"""Namespaces and a file system of our own: what bubblewrap does, for machines without it."""

import os
from collections.abc import Iterator, Sequence

from .kernel import mount, pivot_root, unmount, unshare

NEW_MOUNTS, NEW_GROUPS, NEW_NAME, NEW_IPC, NEW_USER = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000
NEW_PROCESSES, NEW_NETWORK = 0x20000000, 0x40000000

READ_ONLY, NO_SET_UID, NO_DEVICES, NO_EXEC, REMOUNT, NO_ACCESS_TIME = 1, 2, 4, 8, 32, 1024
BIND, RECURSIVE, PRIVATE, RELATIVE_ACCESS_TIME = 1 << 12, 1 << 14, 1 << 18, 1 << 21
DETACH = 2
ST_RELATIVE_ACCESS_TIME = 1 << 12  # statvfs spells this one another way

DEVICES = ("null", "zero", "full", "random", "urandom")
STAGE = "/tmp"  # any folder that every machine has; it is covered in our own mount namespace alone


def leave(user_space: bool) -> None:
    """Take this process into namespaces of its own; pids begin anew with its next child.

    Args:
        user_space: whether a user namespace has to give the right to do so. The user stays the same in it.
    """
    user, group = os.getuid(), os.getgid()
    spaces = NEW_MOUNTS | NEW_GROUPS | NEW_NAME | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
    unshare(spaces | (NEW_USER if user_space else 0))
    if user_space:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def build(readable: Sequence[str], links: Sequence[Sequence[str]], disk: int) -> None:
    """Make a root of `readable` (read-only), `links` (path, target), /proc, a few devices and a /tmp of `disk` bytes; go there."""
    tmpfs = NO_SET_UID | NO_DEVICES
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", STAGE, "tmpfs", tmpfs, "size=1m,mode=755")
    os.mkdir(f"{STAGE}/old")
    os.mkdir(f"{STAGE}/new")
    pivot_root(STAGE, f"{STAGE}/old")
    os.chdir("/")
    mount("tmpfs", "/new", "tmpfs", tmpfs, "size=1m,mode=755")
    os.mkdir("/new/tmp")  # first: an interpreter may lie below the machine's own /tmp
    mount("tmpfs", "/new/tmp", "tmpfs", tmpfs, f"size={disk},mode=1777")
    for path in readable:
        _bind_read_only(path)
    for path, target in links:
        os.symlink(target, f"/new{path}")
    os.mkdir("/new/dev")
    for name in DEVICES:
        _bind(f"/dev/{name}")
    _proc()
    unmount("/old", DETACH)
    os.chdir("/new")
    pivot_root(".", ".")
    unmount(".", DETACH)
    mount(None, "/", None, REMOUNT | BIND | READ_ONLY | tmpfs)
    os.chdir("/tmp")


def _bind(path: str) -> bool:
    """Show the old root's `path` in the new one; False where it is not there."""
    source, target = f"/old{path}", f"/new{path}"
    if not os.path.exists(source):
        return False
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, None, BIND | RECURSIVE)
    return True


def _bind_read_only(path: str) -> None:
    if _bind(path):
        for point in list(_mounted_under(f"/new{path}")):
            mount(None, point, None, REMOUNT | BIND | READ_ONLY | _locked(point))


def _mounted_under(top: str) -> Iterator[str]:
    """Mount points at `top` and below: a bind is read-only one mount at a time."""
    with open("/old/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = unescaped(line.split(" ")[4])
            if point == top or point.startswith(f"{top}/"):
                yield point


def _locked(path: str) -> int:
    """Flags of a mount that a user namespace may not take away."""
    flags = os.statvfs(path).f_flag
    kept = flags & (NO_SET_UID | NO_DEVICES | NO_EXEC | NO_ACCESS_TIME)
    return kept | (RELATIVE_ACCESS_TIME if flags & ST_RELATIVE_ACCESS_TIME else 0)


def _proc() -> None:
    """The sandbox's own processes, read-only; no /proc at all where the machine covers parts of its own.

    Without read-only a user 0 of any user namespace could write the kernel's settings under /proc/sys.
    """
    os.mkdir("/new/proc")
    try:
        mount("proc", "/new/proc", "proc", READ_ONLY | NO_SET_UID | NO_DEVICES | NO_EXEC)
    except PermissionError:
        os.rmdir("/new/proc")


def unescaped(path: str) -> str:
    """A path as the kernel lists mounts, with its octal escapes read."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, character)
    return path
