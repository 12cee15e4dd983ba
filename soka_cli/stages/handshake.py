"""Run in several processes: each gives its number plus one, and all have to know the sum."""

import os
from datetime import timedelta

import torch
import torch.distributed as distributed

PATIENCE = timedelta(seconds=60)


def meet() -> None:
    """Raises what torch raises, or RuntimeError where the sum is another."""
    count, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    on_gpus = distributed.is_nccl_available() and torch.cuda.device_count() >= count
    device = torch.device("cuda", local) if on_gpus else torch.device("cpu")
    distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
    number = torch.tensor([int(os.environ["RANK"]) + 1.0], device=device)
    distributed.all_reduce(number)
    distributed.destroy_process_group()
    if number.item() != count * (count + 1) / 2:
        raise RuntimeError(f"the sum of 1 to {count} came out as {number.item():g}")


if __name__ == "__main__":
    meet()
