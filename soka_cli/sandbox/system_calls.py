"""The system calls that a sandbox refuses, as a seccomp filter: a classic BPF program over number and arguments."""

import errno
import platform
import struct
from collections.abc import Iterator

# Audit number of the architecture and, by name, the numbers that differ from one to another (linux/unistd.h).
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # network, but for socketpair(2), which reaches nobody
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448), "move_pages": (279, 239),
    "migrate_pages": (256, 238), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    # memory that no limit counts, and what outlives a process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # mounts, namespaces, handles of files
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "syslog": (103, 116), "acct": (163, 89),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58), "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None), "lookup_dcookie": (212, 18),
    # looked at more closely below
    "clone": (56, 220), "clone3": (435, 435), "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "fcntl": (72, 25),
    "ioctl": (16, 29),
    # refused only where pids or files are the machine's own, see SIGNALS, GROUPS and ATTRIBUTES
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "setsid": (112, 157), "setpgid": (109, 154),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45), "inotify_add_watch": (254, 27),
}  # fmt: skip
SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
GROUPS = ("setsid", "setpgid")  # so that killing a process group kills all of a program
ATTRIBUTES = tuple(NUMBERS)[tuple(NUMBERS).index("chmod") :]  # what Landlock leaves to the owner of a file
EXAMINED = ("clone", "clone3", "prlimit64", "sched_setaffinity", "fcntl", "ioctl")
NEWEST = 456  # numbers above are of calls that this table does not know: libraries fall back to older ones

NEW_SPACES = 0x7E020080  # the flags of clone(2) that begin namespaces
SAME_PARENT = 0x8000
OWNERS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals through a descriptor
TERMINALS = (0x5412, 0x541C, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP

LOAD, JUMP_EQUAL, JUMP_ABOVE, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000

Instruction = tuple[int, int, int, int]


def program(*also: str) -> bytes | None:
    """The filter for this machine; None where its system calls are not known here.

    Args:
        also: which of SIGNALS, GROUPS and ATTRIBUTES are refused too.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return None
    column = list(ARCHITECTURES).index(machine)
    numbers = {name: number for name, both in NUMBERS.items() if (number := both[column]) is not None}
    kept = {*EXAMINED, *SIGNALS, *GROUPS, *ATTRIBUTES} - {*also}
    refused = [number for name, number in numbers.items() if name not in kept]
    return b"".join(struct.pack("=HBBI", *line) for line in _lines(ARCHITECTURES[machine], numbers, refused))


def _lines(architecture: int, numbers: dict[str, int], refused: list[int]) -> Iterator[Instruction]:
    yield LOAD, 0, 0, ARCHITECTURE_AT
    yield JUMP_EQUAL, 1, 0, architecture
    yield RETURN, 0, 0, KILL
    yield LOAD, 0, 0, NUMBER_AT
    yield from _returns((JUMP_ABOVE, NEWEST), REFUSE | errno.ENOSYS)
    yield from _returns((JUMP_EQUAL, numbers["clone3"]), REFUSE | errno.ENOSYS)  # its flags lie in memory; clone(2) is tried next
    for number in refused:
        yield from _returns((JUMP_EQUAL, number), REFUSE | errno.EPERM)
    yield from _examine(numbers["clone"], 0, [(JUMP_ANY_BIT, NEW_SPACES | SAME_PARENT)])
    yield from _examine(numbers["fcntl"], 1, [(JUMP_EQUAL, value) for value in OWNERS])
    yield from _examine(numbers["ioctl"], 1, [(JUMP_EQUAL, value) for value in TERMINALS])
    for name in ("prlimit64", "sched_setaffinity"):  # of this process only
        yield from _examine(numbers[name], 0, [(JUMP_ABOVE, 0)])
    yield RETURN, 0, 0, ALLOW


def _returns(condition: tuple[int, int], value: int) -> Iterator[Instruction]:
    """Two instructions: if `condition` holds of what is loaded, answer `value`."""
    yield condition[0], 0, 1, condition[1]
    yield RETURN, 0, 0, value


def _examine(number: int, argument: int, conditions: list[tuple[int, int]]) -> Iterator[Instruction]:
    """Refuse the call `number` if one of the conditions holds of its argument's lower half; the number stays loaded after it."""
    body = [line for condition in conditions for line in _returns(condition, REFUSE | errno.EPERM)]
    yield JUMP_EQUAL, 0, len(body) + 2, number
    yield LOAD, 0, 0, ARGUMENTS_AT + 8 * argument
    yield from body
    yield LOAD, 0, 0, NUMBER_AT
