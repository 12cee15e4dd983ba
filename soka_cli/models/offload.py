"""A base that does not fit where it computes: Accelerate puts its weights on a GPU, in main memory and on the disk, and fetches
each as it is needed. The values are those of a model in one place."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import base_error
from soka_cli.models.quantised import stored_packing
from soka_cli.recipe.schema import MaxMemorySection
from soka_cli.run.resources import available_memory

FREE_SHARE = 0.9  # of the main memory that is free, where the recipe names no bound: the rest is for what is computed
OPTION = "model.max_memory"


class Placement:
    """Where a model's weights go, and the folder for those that the checkpoint does not hold as the model does.

    Other weights on the disk are read from the checkpoint itself. The folder goes with the model.

    Args:
        budget: bytes of weights on the GPU that computes and in main memory; the rest lies on the disk.
        device: what computes, a name from pick_device.

    Raises:
        SokaError: exit 3, where a GPU alone is named and there is none; exit 2, where one computes and is not named.
    """

    def __init__(self, budget: MaxMemorySection, device: str) -> None:
        self.device = torch.device(device)
        on_gpu = self.device.type != "cpu"
        if on_gpu and budget.gpu is None:
            raise SokaError(
                f"{OPTION} does not say how much of the weights {device} may hold.",
                where=OPTION,
                hint=f"{OPTION}.gpu=8GiB, or --device cpu",
                exit_code=ExitCode.USAGE,
            )
        if not on_gpu and budget.cpu is None:
            raise SokaError(
                f"{OPTION} names a bound for a GPU, and there is none to compute on.",
                where=f"{OPTION}.gpu",
                why="weights would all lie in main memory, and no bound is named for that",
                hint=f"{OPTION}.cpu=24GiB bounds main memory as well; {OPTION}=null loads the model whole",
                exit_code=ExitCode.ENVIRONMENT,
            )
        self.bounds: dict[int | str, int] = {self.device.index or 0: budget.gpu or 0} if on_gpu else {}
        self.bounds["cpu"] = budget.cpu if budget.cpu is not None else int(FREE_SHARE * (available_memory() or 0))
        self.folder = TemporaryDirectory(prefix="soka-weights-")

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is told; filled in this order, each module where the first room is."""
        return {"device_map": "sequential", "max_memory": self.bounds, "offload_folder": self.folder.name}

    def settle(self, model: PreTrainedModel) -> PreTrainedModel:
        """The loaded model, whose weights all lie on the device where there is room for them.

        Raises:
            SokaError: exit 6, where no part of it found room there.
        """
        if not is_offloaded(model):
            if next(model.parameters()).device.type != self.device.type:
                raise self.too_small()
            return model
        places = set(getattr(model, "hf_device_map", {}).values())  # of one that lies all on the disk there is none
        if not places - ({"disk"} if self.device.type == "cpu" else {"cpu", "disk"}):
            raise self.too_small()
        model.soka_weights_folder = self.folder
        return model

    def too_small(self) -> SokaError:
        """The error for a bound below the first of the model's parts that have to lie together."""
        place = "cpu" if self.device.type == "cpu" else "gpu"
        bound = self.bounds["cpu" if place == "cpu" else self.device.index or 0]
        return SokaError(
            f"No part of the base model fits into {OPTION}.{place}, {bound:,} bytes.",
            where=f"{OPTION}.{place}",
            why="it has to hold the embedding or a block, beside the largest one that is fetched",
            hint=f"a larger {OPTION}.{place}",
            exit_code=ExitCode.RESOURCES,
        )


def refuse_packed(config: PreTrainedConfig, where: str) -> None:
    """Exit 3 for files that hold packed weights: those stay on the device that computes."""
    if (stored := stored_packing(config)) is not None:
        raise base_error(
            f"the base model's weights are packed as {stored}, and packed weights cannot lie elsewhere than where they are used",
            where=where,
            why=f"the recipe bounds them by {OPTION}",
            hint=f"{OPTION}=null, or name the float model that was packed: model.name=FOLDER",
        )


def is_offloaded(model: Any) -> bool:
    """Whether weights lie elsewhere than where they are used, so that Accelerate's hooks fetch them."""
    return getattr(model, "_hf_hook", None) is not None


def computing_device(model: Any) -> torch.device:
    """Where a model takes its inputs. The first parameter of an offloaded one may be nowhere at the moment (`meta`)."""
    device = _device_of_hook(model)
    return torch.device(device) if device is not None else next(model.parameters()).device


def _device_of_hook(module: Any) -> torch.device | int | str | None:
    """Where a module computes by its hook, or the chain of them; None where it has none."""
    hook = getattr(module, "_hf_hook", None)
    return next((one.execution_device for one in getattr(hook, "hooks", [hook]) if hasattr(one, "execution_device")), None)


@contextmanager
def adapting(model: nn.Module) -> Iterator[None]:
    """For PEFT to put an adapter on a model, or load one that is on it, offloaded or not.

    PEFT makes an adapter's tensors where it sees the weight beneath, and an offloaded one is on `meta`: in its place stands a value
    in its shape and type where it will be used, which takes no memory. It is NaN, so that an adapter that reads it cannot go
    unnoticed. Without a device map in sight PEFT leaves the hooks; else it would place all weights anew, without the bounds.
    """
    mapped = [(module, vars(module).pop("hf_device_map")) for module in model.modules() if "hf_device_map" in vars(module)]
    away: list[tuple[Any, str, Any]] = [
        (module, name, weight) for module in model.modules() for name, weight in module._parameters.items() if _is_away(module, weight)
    ]
    for module, name, weight in away:
        nothing = torch.full((), math.nan, dtype=weight.dtype, device=_device_of_hook(module))
        module._parameters[name] = nn.Parameter(nothing.expand(weight.shape), requires_grad=weight.requires_grad)
    try:
        yield
    finally:
        for module, name, weight in away:
            weight.requires_grad_(module._parameters[name].requires_grad)
            module._parameters[name] = weight
        for module, places in mapped:
            module.hf_device_map = places


def _is_away(module: nn.Module, weight: nn.Parameter | None) -> bool:
    return weight is not None and weight.is_meta and _device_of_hook(module) is not None


def whereabouts(model: Any) -> str:
    """One sentence on an offloaded model: bytes by the place where they lie; of a tied weight once."""
    places: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        place = str(_place(model.hf_device_map, name))
        places[place] = places.get(place, 0) + parameter.nbytes
    words = {"cpu": "in main memory", "disk": "on the disk"}
    shares = [f"{size / 1e6:,.1f} MB {words.get(place, f'on GPU {place}')}" for place, size in places.items()]
    return f"The base's weights: {', '.join(shares)}; each is fetched when it is used ({OPTION})."


def _place(places: dict[str, Any], parameter: str) -> Any:
    """The device of the longest module name that leads to a parameter."""
    name = parameter
    while name not in places:
        if not name:
            return "cpu"
        name = name.rpartition(".")[0]
    return places[name]
