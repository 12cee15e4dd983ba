"""Processes that make batches ahead (train.data_workers): they end when their trainer says so, and at nobody else's word."""

import os
import signal
import threading
from collections.abc import Callable


def begin_data_worker(prepare: Callable[[int], None] | None, number: int) -> None:
    """What such a process does first; `prepare` is the loader's own.

    Ctrl-C on a terminal, a batch system and torchrun signal these processes as well. PyTorch would let them die of it, and the
    trainer with them, before its step is done and its checkpoint written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_trainer, args=(os.getppid(),), daemon=True).start()
    if prepare is not None:
        prepare(number)


def _end_with_trainer(trainer: int) -> None:
    """Wait for a SIGTERM of the trainer's own, which Python sends at its end to the processes that are left."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)
