"""How the adapted layers of a model compute their products: what they may keep between passes, and what they did."""

from collections import Counter
from typing import Any

from torch import nn

from soka_cli.adapter.layer import SokaLayer
from soka_cli.kron import Kept

FP32_BYTES = 4


def keep_matrices(model: nn.Module, room: int) -> int:
    """Let every layer on a CPU keep its merged matrix for as long as theta stays, if all of them fit into `room` bytes.

    It changes no result. Within an accumulation window the matrices are then made once, and never for the backward pass.

    Returns:
        The bytes that they take at most; 0 where nothing is kept.
    """
    layers = [one for one in model.modules() if isinstance(one, SokaLayer) and one.on_cpu]
    needed = FP32_BYTES * sum(one.out_features * one.in_features for one in layers)
    if needed > room:
        return 0
    for one in layers:
        one.kept = Kept()
    return needed


def plans_used(model: nn.Module) -> list[dict[str, Any]]:
    """For each type of adapted layer (last part of its name, shape, terms): how many there are, and passes in training by plan."""
    found: dict[tuple[str, str, int], tuple[int, Counter[str]]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, SokaLayer):
            for factors in map(layer.factors, layer.soka_U):
                key = (path.rpartition(".")[2], str(factors.shape), factors.rank)
                layers, passes = found.get(key, (0, Counter()))
                found[key] = (layers + 1, passes + layer.plans_used)
    return [
        {"type": name, "shape": shape, "rank": rank, "layers": layers, "passes": dict(passes)}
        for (name, shape, rank), (layers, passes) in found.items()
    ]
