"""How the adapted layers of a model compute their products: what they may keep between passes, and what they did."""

from collections import Counter
from typing import Any

import torch
from torch import nn

from soka_cli.adapter.layer import Linear, SokaLayer
from soka_cli.kron import Kept, Plan, right_comes_first

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


def plans_used(model: nn.Module, vectors: int, *, autocast: bool = False) -> list[dict[str, Any]]:
    """How each type of adapted layer (last part of its name, shape, terms) computes.

    Args:
        vectors: those of a full micro-batch, for which the plan is told.
        autocast: whether training computes in bfloat16.

    Returns:
        Of each type how many layers there are; their plan of a full micro-batch; the order of its contraction, `V first` or `U first`;
        and passes in training by plan, which a compiled layer does not count.
    """
    found: dict[tuple[str, str, int, Plan, str], tuple[int, Counter[str]]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, Linear):
            for name in layer.soka_U:
                factors = layer.factors(name)
                with torch.autocast(factors.left.device.type, torch.bfloat16, enabled=autocast):
                    plan = layer.plan_of(name, vectors)
                order = "V first" if right_comes_first(factors.shape) else "U first"
                key = (path.rpartition(".")[2], str(factors.shape), factors.rank, plan, order)
                layers, passes = found.get(key, (0, Counter()))
                found[key] = (layers + 1, passes + layer.plans_used)
    return [
        {
            "type": name,
            "shape": shape,
            "rank": rank,
            "layers": layers,
            "vectors": vectors,
            "plan": plan,
            "order": order,
            "passes": dict(passes),
        }
        for (name, shape, rank, plan, order), (layers, passes) in found.items()
    ]
