"""A model that is shared out among processes (FSDP2): its trained tensors whole, and its optimizer's state by name."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

OptimizerState = dict[str, Any]


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is held in parts by several processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts; all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """What is trained and every buffer, by name, whole and on the CPU; never the frozen base. All processes have to ask, and each of
    them holds it all: adapters are small."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: whole(tensor.detach()).cpu() for name, tensor in model.state_dict().items() if name not in frozen}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimizer's state by the names of the parameters, whole and on the CPU, in the first process; the others' is empty."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, optimizer, options=options))


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put a whole state back, by name or, as an optimizer in one process writes it, by number."""
    if not is_by_name(state):
        state = by_name(model, optimizer, state)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def is_by_name(state: OptimizerState) -> bool:
    return any(isinstance(name, str) for group in state["param_groups"] for name in group["params"])


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> OptimizerState:
    """The state with parameters' names in place of their numbers in the optimizer's groups."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: entry for number, entry in state["state"].items()}, "param_groups": groups}
