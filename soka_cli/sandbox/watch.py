"""What the processes of a sandbox use together, which no limit of a single process bounds."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from soka_cli.sandbox.limits import MEBIBYTE, MEMORY, PROCESSES

PAGE = os.sysconf("SC_PAGE_SIZE")
OWN_PROCESSES = 4  # of the layer itself


@dataclass(frozen=True)
class Usage:
    """Resident bytes and threads of a process and all that it started."""

    resident: int
    threads: int

    @property
    def excess(self) -> str:
        """What is more than allowed, in words; empty if nothing is."""
        if self.resident > MEMORY:
            return f"its processes held {self.resident // MEBIBYTE} MiB together; {MEMORY // MEBIBYTE} MiB are allowed"
        if self.threads > PROCESSES + OWN_PROCESSES:
            return f"it ran {self.threads} processes and threads; {PROCESSES} are allowed"
        return ""


def usage(process: int) -> Usage:
    """Of `process` and its descendants; what ends meanwhile counts nothing."""
    resident = threads = 0
    for one in descendants(process):
        try:
            resident += int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1]) * PAGE
            threads += sum(1 for _ in Path(f"/proc/{one}/task").iterdir())
        except OSError:
            continue
    return Usage(resident, threads)


def descendants(process: int) -> Iterator[int]:
    """`process` and what it started, as far as the kernel lists children."""
    waiting = [process]
    while waiting:
        one = waiting.pop()
        yield one
        for listed in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting.extend(map(int, listed.read_text(encoding="ascii").split()))
            except OSError:
                continue
