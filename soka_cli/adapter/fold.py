"""theta0 folded into the base weights of a whole model, for training a single adapter over a float base."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from soka_cli.adapter.layer import SokaLayer
from soka_cli.errors import ExitCode, SokaError

MOST_LINES = 5


@dataclass(frozen=True)
class Folding:
    """What was folded.

    Args:
        layers: how many.
        bytes: of the weights as they were, which are kept in main memory.
        rounding: the largest norm of what rounding to the base's type changed in a weight, over the weight's; 0 in fp32.
    """

    layers: int
    bytes: int
    rounding: float


def fold_start(model: nn.Module) -> Folding:
    """Let every layer's base weight hold W - K(theta0) of the active adapter, so that K(theta) x alone is computed.

    The start is then the base up to rounding. Files, a disabled adapter, merging and unloading are as without it (`Foldable`).

    Raises:
        SokaError: exit 2, weights that cannot take it in, each with its module; nothing is folded.
    """
    layers = _foldable(model)
    if lines := _obstacles(model, layers):
        shown = lines[:MOST_LINES] + ([f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else [])
        raise SokaError(
            "The start cannot be folded into the base weights.",
            where="adapter.fold_start",
            why="\n".join(shown),
            hint="adapter.fold_start=false",
            exit_code=ExitCode.USAGE,
        )
    rounding = [layer.fold(layer.active_adapters[0]) for layer in layers.values()]
    return Folding(len(layers), sum(layer.get_base_weight().nbytes for layer in layers.values()), max(rounding, default=0.0))


def unfold_start(model: nn.Module) -> None:
    """Put every base weight back as it was."""
    for module in model.modules():
        if isinstance(module, SokaLayer):
            module.unfold()


def bytes_to_keep(model: nn.Module) -> int:
    """Of main memory, that `fold_start` will take."""
    return sum(layer.get_base_weight().nbytes for layer in _foldable(model).values() if layer.why_not_folded() is None)


def _foldable(model: nn.Module) -> dict[str, SokaLayer]:
    """The layers on which an active adapter has terms, by their names."""
    named = {name: module for name, module in model.named_modules() if isinstance(module, SokaLayer)}
    return {name: layer for name, layer in named.items() if any(adapter in layer.soka_U for adapter in layer.active_adapters)}


def _obstacles(model: nn.Module, layers: dict[str, SokaLayer]) -> list[str]:
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found = []
    for name, layer in layers.items():
        why = layer.why_not_folded()
        if why is None and owners[id(layer.get_base_layer().weight)] > 1:
            why = "its weight is another module's too"
        if why is not None:
            found.append(f"{name}: {why}")
    return found
