"""How a layer computes its adapter's product: three plans, what each costs, and the cheapest for a layer and a batch.

- factored: the update goes factor by factor beside the base layer; no matrix is formed.
- merged: the update's matrix is formed once a pass and added to the base weight, or, where that would round it away or the base weight
  cannot be added to, applied beside it; gradients of the factors go factor by factor.
- dense: as merged, with the gradients through the gradient of the whole matrix, a dense product however many terms there are.

Each starts as the base bit for bit, unless theta0 is folded into the base weight. The choice depends on sizes, type and device alone, so
a run that goes on chooses as before.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from soka_cli.kron.contraction import BATCHED_TERMS, order_costs
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


CPU = Speed(dense=4.5e10, thin=3.0e10, bytes=8e9, call=2e-5)
GPU = Speed(dense=2.5e14, thin=6e13, bytes=2.5e12, call=6e-6)


@dataclass(frozen=True)
class Work:
    """One pass through one layer.

    Args:
        sizes: r, m, n, p, q; theta has r terms, and theta0 as many.
        vectors: T, over all dimensions of the batch.
        inside: whether the update may be added to the base weight.
        kept: whether the matrix is at hand from pass to pass, while theta stays.
        trained: whether a backward pass follows.
        folded: whether the base weight holds W - K(theta0), so that the terms of theta alone are computed.
        dtype: of the computation.
        device: its type.
    """

    sizes: tuple[int, int, int, int, int]
    vectors: int
    inside: bool
    kept: bool = False
    trained: bool = True
    folded: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def terms(self) -> int:
        """Those of theta, and of theta0 where it is computed beside."""
        return self.sizes[0] if self.folded else 2 * self.sizes[0]


def choose_plan(work: Work) -> Plan:
    """The plan that costs the least."""
    costs = [seconds(plan, work) for plan in PLANS]
    return PLANS[costs.index(min(costs))]


def seconds(plan: Plan, work: Work) -> float:
    """What the adapter adds to the base layer's time, forward and (if trained) backward."""
    speed = CPU if work.device == "cpu" else GPU
    rank, *sides = work.sizes
    shape, size = KronShape(*sides), work.dtype.itemsize
    matrix = shape.out_features * shape.in_features
    unit = work.vectors * min(order_costs(shape))  # one term on every vector
    passes = 2 if work.trained else 1
    factored_gradients = 2 * rank * unit / speed.thin + 2 * work.vectors * (shape.out_features + shape.in_features) * size / speed.bytes
    dense_gradients = work.vectors * matrix / speed.dense + 5 * matrix * size / speed.bytes + 2 * rank * matrix / speed.thin
    if plan == "factored":
        beside = passes * (work.terms * unit / speed.thin + 3 * work.vectors * shape.out_features * size / speed.bytes + 12 * speed.call)
        return beside + (factored_gradients if work.trained else 0.0)
    touched = 2 if work.terms <= BATCHED_TERMS else 4  # W is read and W' written, and beyond that a rearranged sum in between
    forming = touched * matrix * size / speed.bytes + work.terms * matrix / speed.thin + 12 * speed.call
    forward = (0 if work.kept else passes) * forming
    if not work.inside:
        forward += passes * (work.vectors * matrix / speed.dense + 3 * work.vectors * shape.out_features * size / speed.bytes)
    if not work.trained:
        return forward
    return forward + (factored_gradients if plan == "merged" else dense_gradients)


def multiply_adds(plan: Plan, work: Work) -> int:
    """What the adapter adds to the base layer's multiply-adds, forward and (if trained) backward."""
    rank, *sides = work.sizes
    shape = KronShape(*sides)
    matrix = shape.out_features * shape.in_features
    unit = work.vectors * min(order_costs(shape))
    passes = 2 if work.trained else 1
    if plan == "factored":
        through = passes * work.terms * unit
    else:
        through = (0 if work.kept else passes) * work.terms * matrix + (0 if work.inside else passes * work.vectors * matrix)
    if not work.trained:
        return through
    return through + (work.vectors * matrix + 2 * rank * matrix if plan == "dense" else 2 * rank * unit)
