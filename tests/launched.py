"""Programs that are started in processes of their own."""

import os
import time
from collections.abc import Callable

PATIENCE = 120.0  # seconds on a busy machine
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """This process's, without a launcher's marks, one thread each."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {"OMP_NUM_THREADS": "1"}


def until(what: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.02)
