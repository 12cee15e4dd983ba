"""Several processes that do one stage's work together: started here, or by torchrun, accelerate or a batch system.

A process finds its place in the environment (RANK, LOCAL_RANK, WORLD_SIZE), where every launcher writes it. The first one
speaks to the user and writes results; the others wait for its word and then do their share. Imports no torch before it is used.
"""

import contextlib
import ctypes
import logging
import os
import secrets
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import ModelSection
from soka_cli.run.environment import processors
from soka_cli.run.interrupt import Interrupted
from soka_cli.run.program import program_words

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LAUNCHER = "SOKA_LAUNCHER"  # process id of the soka that started this one
SET_PARENT_DEATH_SIGNAL = 1  # prctl's number for it, on Linux
CONNECT = timedelta(seconds=5)
PATIENCE = timedelta(minutes=30)  # for the first process to find the base and open the run directory
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torch kills workers so many seconds after a signal: 30 where nobody says more
TO_FINISH = timedelta(hours=1)  # the step under way and its checkpoint; a second signal ends them at once
ECHO = timedelta(seconds=5)  # a batch system signals the workers and their launcher, which passes the signal on to them


class WorkersFailed(Exception):  # noqa: N818 - no fault of this process
    """A worker ended with an exit code of its own and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a worker process ended with exit code {code}")
        self.code = code


@dataclass
class Worker:
    """This process among `count`: `rank` over all machines, `local_rank` on its own. Alone it is 0 of 1."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1
    _connected: "TCPStore | None" = field(default=None, repr=False, compare=False)
    _turns: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def here(cls) -> "Worker":
        """The place that a launcher gave this process; alone where none did."""
        return _worker_of(*(os.environ.get(name, "") for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")))

    def device(self, device: str) -> str:
        """`cuda` as this process's own GPU, where there are several of both; any other device as it is."""
        if device != "cuda" or self.count == 1:
            return device
        import torch

        return f"cuda:{self.local_rank % max(1, torch.cuda.device_count())}"

    def require_alone(self, model: ModelSection) -> None:
        """Refuse (exit 2) several processes over a base whose weights are fetched as they are used: Accelerate trains such a one in
        one process, and each would take the main memory that is named for all."""
        if model.max_memory is not None and self.count > 1:
            raise SokaError(
                f"{self.count} processes can't share a base whose weights lie in several places.",
                where="model.max_memory",
                why="each would fetch them for itself",
                hint="--num-processes 1; or model.max_memory=null, and for several GPUs train.strategy=fsdp2",
                exit_code=ExitCode.USAGE,
            )

    # ---- one word from the first process to the others

    @contextlib.contextmanager
    def leads(self, stage: str) -> Iterator[Callable[[], None]]:
        """In the first process: yields `go`, which lets the others begin. Left without it, they are told to end."""
        told, key = False, self._turn(stage)

        def tell(word: str) -> None:
            nonlocal told
            told = True
            if self.count > 1:
                self._store().set(key, word)

        try:
            yield lambda: tell("go")
        finally:
            if not told:
                tell("end")
            self._outlast(key)

    def _turn(self, stage: str) -> str:
        """Where the word for a stage stands: a process may come to the same stage again, and all come to it as often."""
        self._turns[stage] = self._turns.get(stage, 0) + 1
        return f"soka/{stage}/{self._turns[stage]}"

    def _outlast(self, key: str) -> None:
        """Where this process keeps the store, let the others hear its word before it ends."""
        until = time.monotonic() + CONNECT.total_seconds()
        while self.count > 1 and self._keeps_store and self._store().add(f"{key}/heard", 0) < self.count - 1:
            if time.monotonic() > until:
                return
            time.sleep(0.05)

    def may_begin(self, stage: str, patience: timedelta | None = None) -> bool:
        """In the others: wait for the first one's word, PATIENCE where no other is named; False where there is nothing to do for them.

        Raises:
            SokaError: exit 3, where it gave none.
        """
        patience, key = patience or PATIENCE, self._turn(stage)
        try:
            self._store(patience).wait([key], patience)
            word = self._store().get(key)
            self._store().add(f"{key}/heard", 1)
            return word == b"go"
        except RuntimeError as error:
            raise SokaError(
                "the first of the processes gave no sign",
                where=f"process {self.rank} of {self.count}",
                why=str(error).split("\n")[0],
                hint="look at what it said; the same command goes on where the work stopped",
                exit_code=ExitCode.ENVIRONMENT,
            ) from None

    def speaks_first(self) -> bool:
        """Whether this process is the first to fail: an error is shown once, not once a process."""
        if self.count == 1:
            return True
        try:
            return self._store().add("soka/errors", 1) == 1
        except (RuntimeError, KeyError, ImportError):  # nobody left to ask
            return self.rank == 0

    @property
    def _keeps_store(self) -> bool:
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def _store(self, patience: timedelta = CONNECT) -> "TCPStore":
        """Keys and values that all the processes see, kept by the launcher, or by the first process where the launcher has none.

        RuntimeError where nobody has kept them for as long as `patience`.
        """
        from torch.distributed import TCPStore

        if self._connected is None:
            self._connected = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=self._keeps_store,
                timeout=patience,
                wait_for_workers=False,
                multi_tenant=True,
            )
        return self._connected


@cache
def _worker_of(local_rank: str, rank: str, count: str, port: str) -> Worker:
    """One worker for each place, so that its connection is made once."""
    if not local_rank:
        return Worker()
    return Worker(int(rank or local_rank), int(local_rank), int(count or 1))


def in_processes(command: str, count: int) -> bool:
    """Whether the work of `command` was left to `count` processes, started here for it, which have done it.

    Raises:
        SokaError: exit 2, where another launcher started another number, or one alone where it was told more; and as `launch` does.
    """
    if "LOCAL_RANK" not in os.environ:
        _refuse_one_of_several()
        if count > 1:
            launch(command, count)
        return count > 1
    if count not in (1, started := Worker.here().count):
        raise SokaError(
            f"--num-processes {count} was asked for, and {started} were started",
            where="WORLD_SIZE, which the launcher set",
            hint="leave --num-processes out under torchrun, accelerate launch or a batch system, or start soka without them",
            exit_code=ExitCode.USAGE,
        )
    return False


def _refuse_one_of_several() -> None:
    """Exit 2 where `accelerate launch` was told several processes and gave this one no place among them.

    With --cpu it starts one process and does not say so. It leaves the address of a meeting place only where it was told more than
    one, and its type of numbers always.
    """
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys():
        raise SokaError(
            "accelerate launch was told several processes and started this one alone",
            where="MASTER_PORT without LOCAL_RANK, which the launcher set",
            why="with --cpu, or distributed_type MULTI_CPU or NO, it does not start the others and does not say so",
            hint="--num-processes N without accelerate launch, or accelerate launch --multi_gpu (on CPUs as well, with --device cpu); "
            "for one process unset MASTER_PORT and add --num_processes 1",
            exit_code=ExitCode.USAGE,
        )


def launched_here() -> bool:
    """Whether this process is a worker of another soka."""
    return LAUNCHER in os.environ


def end_with_launcher() -> None:
    """In a worker: be terminated when its launcher ends, however that happens."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    signal.signal(signal.SIGTERM, _terminate_once)
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if launched_here() and os.getppid() != int(os.environ[LAUNCHER]):
        raise Interrupted(signal.SIGTERM)  # it ended before the line above


def _terminate_once(number: int, frame: FrameType | None) -> None:
    """The kernel sends the signal for each thread of the launcher that ends; one is enough to clean up after."""
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted(number)


def launch(command: str, count: int) -> None:
    """Run `command`, as the user typed it, in `count` processes on this machine; returns when all of them are done.

    Where the user has not set OMP_NUM_THREADS, the processes share the cores. After a signal they have TO_FINISH, or what
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT says.

    Raises:
        WorkersFailed: a worker failed and said why.
        SokaError: exit 6, a worker was killed.
        KeyboardInterrupt: this process was interrupted or terminated; the workers were, too.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, processors() // count))
    patience = os.environ.get(SHUTDOWN) or str(int(TO_FINISH.total_seconds()))
    added = {LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR", SHUTDOWN: patience}
    with tempfile.TemporaryDirectory(prefix="soka-launch-") as folder, _environment(added), _hushed():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=secrets.token_hex(8),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)(*program_words(), *shlex.split(command)[1:])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise _failure(rank, count, failure.exitcode) from None
        except SignalException as end:
            raise (KeyboardInterrupt() if end.sigval == signal.SIGINT else Interrupted(end.sigval)) from None


def _failure(rank: int, count: int, code: int) -> Exception:
    if code > 0 and code not in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        return WorkersFailed(code)
    name = signal.Signals(-code).name if code < 0 else ExitCode(code).name.lower()
    return SokaError(
        f"process {rank} of {count} was ended from outside ({name})",
        why="most often the machine ran out of memory" if code == -signal.SIGKILL else "",
        hint="give the same command again, it goes on where it stopped; with fewer processes it needs less memory",
        exit_code=ExitCode.RESOURCES if code == -signal.SIGKILL else ExitCode.TERMINATED,
    )


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the launcher's own log off the terminal: what matters of it comes as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _environment(added: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def share_out(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of the pieces of work for each of `count` processes: the costliest first, each to the one that has least so far.

    Depends on the arguments alone, so that every process comes to the same result by itself.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for index in sorted(range(len(costs)), key=lambda one: -costs[one]):
        least = min(range(count), key=lambda one: (loads[one], one))
        shares[least].append(index)
        loads[least] += costs[index]
    return shares
