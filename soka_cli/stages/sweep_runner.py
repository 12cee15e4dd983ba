"""Starts the runs of a sweep, each in processes of its own, some at a time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soka_cli.run.environment import processors
from soka_cli.run.program import program_words

POLL = 0.05  # seconds between two looks at the processes
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """Commands of one run, one after the other until one fails; each is the words after `soka`.

    Attributes:
        log: gets what they say to people.
        answer: gets the JSON object that each ends with.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path
    answer: Path


@dataclass(frozen=True)
class Ended:
    """How a job ended: the exit code of its last command, and that command's error in words."""

    job: Job
    exit_code: int
    error: str | None


@dataclass
class _Running:
    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    left: list[tuple[str, ...]] = field(default_factory=list)


def run_jobs(jobs: Sequence[Job], count: int, *, devices: Sequence[str] = (), begun: Callable[[Job], None]) -> Generator[Ended, None, None]:
    """Run the jobs, `count` at a time, and yield each as it ends.

    Args:
        devices: what the slots compute on, in turn; empty leaves it to the commands.
        begun: called when a job starts.

    Whatever ends this early (a signal, a full disk) ends the processes too: they are asked to, write their checkpoints, and are waited for.
    """
    waiting = list(reversed(jobs))
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            for slot in range(count):
                if slot not in running and waiting:
                    job = waiting.pop()
                    begun(job)
                    running[slot] = start(job, slot, count, devices)
            time.sleep(POLL)
            for slot, one in list(running.items()):
                code = one.process.poll()
                if code is None:
                    continue
                if code == 0 and one.left:
                    running[slot] = follow(one, count, devices)
                    continue
                del running[slot]
                yield Ended(one.job, code if code >= 0 else 128 - code, None if code == 0 else said(one.job.answer))
    finally:
        end(one.process for one in running.values())


def start(job: Job, slot: int, count: int, devices: Sequence[str]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    for path in (job.log, job.answer):
        path.write_bytes(b"")
    first, *rest = job.commands
    return _Running(job, slot, spawn(job, first, slot, count, devices), rest)


def follow(one: _Running, count: int, devices: Sequence[str]) -> _Running:
    """The job's next command."""
    return _Running(one.job, one.slot, spawn(one.job, one.left[0], one.slot, count, devices), one.left[1:])


def spawn(job: Job, words: tuple[str, ...], slot: int, count: int, devices: Sequence[str]) -> "subprocess.Popen[bytes]":
    """One command in a session of its own, so that a Ctrl-C reaches it once, through us."""
    device = ("--device", devices[slot % len(devices)]) if devices else ()
    environment = {**os.environ, THREADS: os.environ.get(THREADS) or str(max(1, processors() // count))}
    with ExitStack() as stack:
        out, err = (stack.enter_context(path.open("ab")) for path in (job.answer, job.log))
        return subprocess.Popen(
            [sys.executable, *program_words(), *words, *device, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )


def end(processes: Iterator["subprocess.Popen[bytes]"]) -> None:
    """Ask them to end, and wait: each writes what it has first."""
    left = list(processes)
    for process in left:
        process.terminate()
    for process in left:
        process.wait()


def said(answer: Path) -> str:
    """The error that a command ended with, in one line."""
    lines = answer.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        error: Any = json.loads(lines[-1])["error"]
        return ": ".join(str(error[part]).replace("\n", "; ") for part in ("what", "why") if error.get(part))
    except (IndexError, ValueError, KeyError, TypeError):
        return "it ended without a word (killed, perhaps for want of memory)"


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def devices_for(device: str, count: int) -> list[str]:
    """What each slot computes on: the device asked for, or every GPU in turn where several runs go at once."""
    if device != "auto":
        return [device]
    there = gpus() if count > 1 else 0
    return [f"cuda:{index}" for index in range(there)] if there > 1 else []
