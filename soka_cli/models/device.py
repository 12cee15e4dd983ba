"""The device that computes, and how much memory it has left. Imports torch alone."""

import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.resources import available_memory


def pick_device(choice: str) -> str:
    """`auto` (the first GPU, else the CPU), `cpu` or `cuda[:k]` as a torch device name.

    Raises:
        SokaError: exit 3, where that GPU is not there; exit 2, where the text is none of these.
    """
    name, _, index = choice.partition(":")
    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if choice == "cpu":
        return "cpu"
    if name != "cuda" or (":" in choice and not index.isdecimal()):
        raise SokaError(
            f"there is no kind of device called {choice}",
            where="--device",
            hint="--device auto, --device cpu or --device cuda:0",
            exit_code=ExitCode.USAGE,
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise SokaError(
            f"device {choice} is not there",
            where="--device",
            why=f"torch {torch.__version__} sees {count} GPUs",
            hint="--device auto takes what there is; `soka doctor` shows it",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return choice


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else available_memory()
