"""The adapter's product with gradients of its own: for backward it keeps the input and the factors, and makes the rest again."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from soka_cli.kron.contraction import LaidOut, add_terms, apply_terms, matrix_term_gradients, term_gradients
from soka_cli.kron.factors import KronFactors
from soka_cli.kron.kept import Kept
from soka_cli.kron.product import kron_dense, kron_difference

Parts = tuple[Tensor, Tensor, Tensor]
"""left [r, m, n], right [r, p, q] and sigma [r]."""


def factored_update(x: Tensor, now: KronFactors, start: KronFactors | None) -> Tensor:
    """(K(theta) - K(theta0)) x factor by factor; exactly zero where the two are equal. Under autocast in its type.

    Args:
        x: [..., n*q].
        now: theta, which gets gradients.
        start: theta0; None for K(theta) x alone, beside a base weight that holds W - K(theta0).

    Returns:
        [..., m*p], in the type of the computation.
    """
    x = x.to(computed_in(x))
    return _FactoredUpdate.apply(x, *_parts(now, start))


def laid_out_update(now: KronFactors, start: KronFactors | None, dtype: torch.dtype) -> LaidOut:
    """The same sum ready to be applied to many inputs of a type, one after the other; without gradients."""
    with torch.no_grad():
        return LaidOut.of(*_sum(_parts(now, start), dtype))


def matrix_update(
    x: Tensor, now: KronFactors, start: KronFactors | None, *, dense_gradients: bool, kept: Kept[Tensor] | None = None
) -> Tensor:
    """The same through the matrix K(theta) - K(theta0), made again for backward; gradients as in `merged_linear`."""
    x = x.to(computed_in(x))
    return _MatrixProduct.apply(x, None, None, False, dense_gradients, kept, *_parts(now, start))


def merged_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    now: KronFactors,
    start: KronFactors | None,
    *,
    fan_in_fan_out: bool = False,
    dense_gradients: bool = False,
    kept: Kept[Tensor] | None = None,
) -> Tensor:
    """y = (W + K(theta) - K(theta0)) x + b through one matrix, which is W bit for bit where theta is theta0.

    For fp32 and fp64 alone: a narrower type would round the update away. W gets no gradient.

    Args:
        x: [..., n*q], in the type of W.
        weight: W, [m*p, n*q]; [n*q, m*p] with `fan_in_fan_out` (GPT-2's Conv1D).
        bias: [m*p].
        now: theta, which gets gradients.
        start: theta0; None where W holds W - K(theta0).
        dense_gradients: through the gradient of the whole matrix, for many terms; else factor by factor.
        kept: where the matrix stays while theta does; else it is made again for backward.

    Returns:
        [..., m*p].
    """
    return _MatrixProduct.apply(x, weight, bias, fan_in_fan_out, dense_gradients, kept, *_parts(now, start))


def computed_in(x: Tensor) -> torch.dtype:
    """The type that matrix products with x are computed in, here and now."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _parts(*sums: KronFactors | None) -> tuple[Tensor, ...]:
    """The parts of theta, and of theta0 where it counts."""
    return tuple(part for factors in sums if factors is not None for part in (factors.left, factors.right, factors.sigma))


def _sum(parts: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K(theta) - K(theta0) as one sum of 2 r terms, L [2r, m, n] and R [2r, p, q], each term with a zero factor at the start; of theta
    alone the r terms of K(theta)."""
    if len(parts) == 3:
        return (parts[2][:, None, None] * parts[0]).to(dtype), parts[1].to(dtype)
    first, second = kron_difference(KronFactors(*parts[:3]), KronFactors(*parts[3:]))
    left = torch.cat([first[0], second[2][:, None, None] * second[0]])
    return left.to(dtype), torch.cat([first[1], second[1]]).to(dtype)


def _parameter_gradients(d_left: Tensor, d_right: Tensor, parts: tuple[Tensor, ...]) -> Parts:
    """From those of L = sigma U and R = V to those of U, V and sigma."""
    left, right, sigma = parts[:3]
    d_sigma = (d_left * left).sum((1, 2))
    return (sigma[:, None, None] * d_left).to(left.dtype), d_right.to(right.dtype), d_sigma.to(sigma.dtype)


class _FactoredUpdate(torch.autograd.Function):
    """x [..., in], theta and (or not) theta0 -> [..., out]."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parts)
        with torch.autocast(x.device.type, enabled=False):
            y = apply_terms(x.reshape(-1, x.shape[-1]), *_sum(parts, x.dtype))
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *held = ctx.saved_tensors
        parts = tuple(held)
        rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        d_x: Tensor | None = None
        d_parts: tuple[Tensor | None, ...] = (None, None, None)
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                left, right = _sum(parts, x.dtype)
                d_x = apply_terms(gradients, left.transpose(1, 2), right.transpose(1, 2)).reshape(x.shape)
            if any(ctx.needs_input_grad[1:4]):
                left = (parts[2][:, None, None] * parts[0]).to(x.dtype)
                d_parts = _parameter_gradients(*term_gradients(rows, gradients, left, parts[1].to(x.dtype)), parts)
        return d_x, *d_parts, *(None,) * len(parts[3:])


class _MatrixProduct(torch.autograd.Function):
    """x [..., in], W or none, bias or none, how, theta and (or not) theta0 -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        weight, bias, turned, dense_gradients, kept, *parts = others
        ctx.save_for_backward(x, weight, *parts)
        ctx.turned, ctx.dense_gradients, ctx.kept = turned, dense_gradients, kept
        with torch.autocast(x.device.type, enabled=False):
            matrix = _matrix(tuple(parts), weight, x.dtype, turned, kept)
            if turned:  # by the very operations of the base layer, as the start has to be its equal bit for bit
                rows = x.reshape(-1, x.shape[-1])
                return torch.addmm(bias, rows, matrix).reshape(*x.shape[:-1], matrix.shape[1])
            return F.linear(x, matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *held = ctx.saved_tensors
        parts = tuple(held)
        rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        d_x: Tensor | None = None
        d_parts: tuple[Tensor | None, ...] = (None, None, None)
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                matrix = _matrix(parts, weight, x.dtype, ctx.turned, ctx.kept)
                d_x = (gradients @ (matrix.T if ctx.turned else matrix)).reshape(x.shape)
            if any(ctx.needs_input_grad[6:9]):
                left, right = (parts[2][:, None, None] * parts[0]).to(x.dtype), parts[1].to(x.dtype)
                if ctx.dense_gradients:
                    d_terms = matrix_term_gradients(gradients.T @ rows, left, right)
                else:
                    d_terms = term_gradients(rows, gradients, left, right)
                d_parts = _parameter_gradients(*d_terms, parts)
            d_bias = gradients.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, None, d_bias, None, None, None, *d_parts, *(None,) * len(parts[3:])


def _matrix(parts: tuple[Tensor, ...], weight: Tensor | None, dtype: torch.dtype, turned: bool, kept: Kept[Tensor] | None) -> Tensor:
    """W and the sum of terms added to it, or without a W the sum alone, in `dtype`."""

    def make() -> Tensor:
        left, right = _sum(parts, parts[0].dtype)
        if turned:
            left, right = left.transpose(1, 2), right.transpose(1, 2)
        if weight is not None:
            return add_terms(weight, left, right)
        return kron_dense(left, right, left.new_ones(len(left))).to(dtype)

    return make() if kept is None else kept.get(parts, weight, make, how=(dtype, turned))
