"""Many programs, several judged at a time."""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox.isolation import UNSAFE, advice, find_isolation
from soka_cli.sandbox.layer import Layer
from soka_cli.sandbox.verdict import Program, Verdict
from soka_cli.sandbox.worker import Worker

Told = Callable[[int, Verdict], None]


def judge(code: str, tests: Sequence[str], setup: str = "", timeout: float = 10.0, *, unsafe: bool = False) -> Verdict:
    """Run a program that nobody trusts, and tests on it, in a sandbox that is thrown away.

    The tests run in a process of their own and ask the program's for each thing that it defines, so a program cannot forge a verdict.
    Where they need the program's classes themselves they run beside it instead, and `mode` says so.

    Args:
        code: the program.
        tests: Python texts that raise nothing if the program is right, e.g. `assert add(1, 2) == 3`.
        setup: Python text that runs before the tests; what it defines is there for the program too, see `Program`.
        timeout: seconds of wall clock, the start of the sandbox not counted.
        unsafe: whether to run the program even where nothing isolates it. Resource limits still hold.

    Returns:
        The verdict: pass, fail, timeout, or error where no isolation is available.
    """
    layer = layer_for(unsafe)
    if layer is None:
        return Verdict("error", f"no isolation is available: {advice(find_isolation())}")
    with Worker(layer, spare=0) as worker:
        return worker.judge(Program(code, tuple(tests), setup, timeout))


def judge_all(programs: Sequence[Program], *, workers: int | None = None, unsafe: bool = False, told: Told | None = None) -> list[Verdict]:
    """The verdicts on many programs, in their order.

    Args:
        workers: programs at a time; None takes one a processor core.
        unsafe: as in `judge`.
        told: called with each program's place and its verdict as they come, one at a time.

    Raises:
        SokaError: exit 3, no isolation is available.
    """
    layer = layer_for(unsafe)
    if layer is None:
        raise no_isolation()
    return judge_with(layer, programs, workers=workers, told=told)


def judge_with(layer: Layer, programs: Sequence[Program], *, workers: int | None = None, told: Told | None = None) -> list[Verdict]:
    """As `judge_all`, on one layer."""
    verdicts: list[Verdict | None] = [None] * len(programs)
    places, stopped, turn = queue.SimpleQueue[int](), threading.Event(), threading.Lock()
    for place in range(len(programs)):
        places.put(place)

    def shift() -> None:
        with Worker(layer, stopped=stopped) as worker:
            while not stopped.is_set():
                try:
                    place = places.get_nowait()
                except queue.Empty:
                    return
                verdict = worker.judge(programs[place])
                with turn:
                    if stopped.is_set():
                        return
                    verdicts[place] = verdict
                    if told is not None:
                        told(place, verdict)

    crew = max(1, min(workers or len(os.sched_getaffinity(0)), len(programs)))
    with ThreadPoolExecutor(crew, thread_name_prefix="sandbox") as executor:
        tasks = [executor.submit(shift) for _ in range(crew)]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
        for task in tasks:
            task.result()
    return [verdict for verdict in verdicts if verdict is not None]


def layer_for(unsafe: bool) -> Layer | None:
    """The strongest layer here; none at all only for those who insist."""
    return find_isolation().layer or (UNSAFE if unsafe else None)


def no_isolation() -> SokaError:
    found = find_isolation()
    return SokaError(
        "Model-written programs are not run here: nothing isolates them.",
        where="sandbox",
        why="; ".join(f"{name}: {why}" for name, why in found.refused),
        hint=f"{advice(found)}; or, on a machine that you can afford to lose, give --unsafe-execution",
        exit_code=ExitCode.ENVIRONMENT,
    )
