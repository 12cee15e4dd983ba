"""How a layer computes its adapter's product: three plans, what each costs, and the cheapest for a layer and a batch.

- factored: the update goes factor by factor beside the base layer; no matrix is formed.
- merged: the update's matrix is formed once a pass and added to the base weight, or, where that would round it away or the base weight
  cannot be added to, applied beside it; gradients of the factors go factor by factor.
- dense: as merged, with the gradients through the gradient of the whole matrix, a dense product however many terms there are.

Each starts as the base bit for bit. The choice depends on sizes, type and device alone, so a run that goes on chooses as before.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from soka_cli.kron.contraction import order_costs
from soka_cli.kron.shape import KronShape

Plan = Literal["factored", "merged", "dense"]
PLANS: tuple[Plan, ...] = get_args(Plan)


@dataclass(frozen=True)
class Speed:
    """What a device does a second, measured by `benchmarks/layer.py`.

    Args:
        dense: multiply-adds of a product of large matrices.
        thin: multiply-adds of products with a factor's sides.
        bytes: of memory read or written.
        call: seconds of one operation, however small.
    """

    dense: float
    thin: float
    bytes: float
    call: float


CPU = Speed(dense=4.2e10, thin=3.4e10, bytes=7e9, call=6e-6)
GPU = Speed(dense=2.5e14, thin=6e13, bytes=2.5e12, call=6e-6)


@dataclass(frozen=True)
class Work:
    """One pass through one layer.

    Args:
        shape: sizes of the factors.
        rank: terms of theta; theta0 has as many.
        vectors: T, over all dimensions of the batch.
        inside: whether the update may be added to the base weight.
        kept: whether the matrix is at hand from pass to pass, while theta stays.
        trained: whether a backward pass follows.
        dtype: of the computation.
        device: its type.
    """

    shape: KronShape
    rank: int
    vectors: int
    inside: bool
    kept: bool = False
    trained: bool = True
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


def choose_plan(work: Work) -> Plan:
    """The plan that costs the least."""
    costs = [seconds(plan, work) for plan in PLANS]
    return PLANS[costs.index(min(costs))]


def seconds(plan: Plan, work: Work) -> float:
    """What the adapter adds to the base layer's time, forward and (if trained) backward."""
    speed = CPU if work.device == "cpu" else GPU
    shape, size = work.shape, work.dtype.itemsize
    matrix = shape.out_features * shape.in_features
    unit = work.vectors * min(order_costs(shape))  # one term on every vector
    passes = 2 if work.trained else 1
    factored_gradients = 2 * work.rank * unit / speed.thin + 2 * work.vectors * (shape.out_features + shape.in_features) * size / speed.bytes
    dense_gradients = work.vectors * matrix / speed.dense + (2 * matrix * size) / speed.bytes + 2 * work.rank * matrix / speed.thin
    if plan == "factored":
        beside = passes * (2 * work.rank * unit / speed.thin + 3 * work.vectors * shape.out_features * size / speed.bytes + 12 * speed.call)
        return beside + (factored_gradients if work.trained else 0.0)
    forming = (2 * matrix * size) / speed.bytes + 2 * work.rank * matrix / speed.thin + 12 * speed.call
    forward = (0 if work.kept else passes) * forming
    if not work.inside:
        forward += passes * (work.vectors * matrix / speed.dense + 3 * work.vectors * shape.out_features * size / speed.bytes)
    if not work.trained:
        return forward
    return forward + (factored_gradients if plan == "merged" else dense_gradients)
