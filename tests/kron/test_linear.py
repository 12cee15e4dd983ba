"""The product with its own gradients: held to the readable reference, keeping little, starting as the base bit for bit."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soka_cli.kron import Kept, KronFactors, factored_update, kron_dense, matrix_update, merged_linear
from tests.kron.shapes import random_sizes

SIZES = [(2, 3, 4, 2, 5), (9, 3, 4, 2, 5), (2, 6, 1, 1, 4), (2, 1, 5, 6, 1)]
Product = Callable[[Tensor, Tensor, Tensor | None, KronFactors, KronFactors | None], Tensor]


def beside(update: Callable[..., Tensor], **how: bool) -> Product:
    return lambda x, weight, bias, now, start: F.linear(x, weight, bias) + update(x, now, start, **how)


PRODUCTS: dict[str, Product] = {
    "factored": beside(factored_update),
    "matrix": beside(matrix_update, dense_gradients=False),
    "matrix, dense": beside(matrix_update, dense_gradients=True),
    "merged": lambda x, weight, bias, now, start: merged_linear(x, weight, bias, now, start),
    "merged, dense": lambda x, weight, bias, now, start: merged_linear(x, weight, bias, now, start, dense_gradients=True),
    "merged, kept": lambda x, weight, bias, now, start: merged_linear(x, weight, bias, now, start, kept=Kept()),
}


def factors(size: tuple[int, ...], seed: int, *, dtype: torch.dtype = torch.float64, grad: bool = False) -> KronFactors:
    rank, m, n, p, q = size
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(*one, generator=generator, dtype=torch.float64) for one in ((rank, m, n), (rank, p, q), (rank,)))
    return KronFactors(*(part.to(dtype).requires_grad_(grad) for part in parts))


def layer(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    _, m, n, p, q = size
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(m * p, n * q, generator=generator, dtype=torch.float64).to(dtype)
    return weight, torch.randn(m * p, generator=generator, dtype=torch.float64).to(dtype)


def inputs(size: tuple[int, ...], *leading: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(*leading, size[2] * size[4], generator=generator, dtype=torch.float64).to(dtype)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, now: KronFactors, start: KronFactors) -> Tensor:
    dense = kron_dense(now.left, now.right, now.sigma) - kron_dense(start.left, start.right, start.sigma)
    return F.linear(x, weight + dense, bias)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("product", PRODUCTS)
def test_values_and_gradients_are_the_references(product: str, size: tuple[int, ...], leading: tuple[int, ...]) -> None:
    now, start = factors(size, 0, grad=True), factors(size, 1)
    weight, bias = layer(size)
    x = inputs(size, *leading).requires_grad_()
    wanted = (x, now.left, now.right, now.sigma)
    found, expected = (way(x, weight, bias, now, start) for way in (PRODUCTS[product], reference))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(7))
    for one, other in zip(torch.autograd.grad(found, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# Relative errors of norms: sums in another order, and in bf16 a rounding of what lies between.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
TYPED = [(product, dtype) for product in PRODUCTS for dtype in TOLERANCE if dtype != torch.bfloat16 or not product.startswith("merged")]


@pytest.mark.parametrize(("product", "dtype"), TYPED, ids=str)
@pytest.mark.parametrize("size", random_sizes(8), ids=str)
def test_in_random_shapes_values_gradients_and_types_are_the_references(size: tuple[int, ...], product: str, dtype: torch.dtype) -> None:
    """Input and weight in the type, factors in fp32 at least; held to the reference in fp64."""
    held = torch.promote_types(dtype, torch.float32)
    now, start = factors(size, 0, dtype=held, grad=True), factors(size, 1, dtype=held)
    weight, bias = layer(size, dtype)
    x = inputs(size, 9, dtype=dtype).requires_grad_()
    wanted = (x, now.left, now.right, now.sigma)
    y = PRODUCTS[product](x, weight, bias, now, start)
    assert y.dtype == dtype
    upstream = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(dtype)
    exact = [one.detach().double().requires_grad_() for one in wanted]
    begun = KronFactors(start.left.double(), start.right.double(), start.sigma.double())
    expected = reference(exact[0], weight.double(), bias.double(), KronFactors(*exact[1:]), begun)
    assert apart(y, expected) < TOLERANCE[dtype]
    for one, other, of in zip(
        torch.autograd.grad(y, wanted, upstream), torch.autograd.grad(expected, exact, upstream.double()), wanted, strict=True
    ):
        assert one.dtype == of.dtype
        assert apart(one, other) < TOLERANCE[dtype]


def apart(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).norm() / exact.norm()).detach())


@pytest.mark.parametrize("product", PRODUCTS)
def test_inputs_factors_and_gradients_need_not_be_contiguous(product: str) -> None:
    size = (2, 3, 4, 2, 5)
    weight, bias = layer(size)
    start, now = factors(size, 1), factors(size, 0)
    left, right, sigma = now.left, now.right, now.sigma
    x, upstream = inputs(size, 6, 2), torch.randn(6, 7, 2, dtype=torch.float64)[:, :6].transpose(1, 2)
    plain = [one.clone().requires_grad_() for one in (x, left, right, sigma)]
    strided = [
        x.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_(),
        left.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_(),
        right.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        torch.stack([sigma, sigma], 1)[:, 0].requires_grad_(),
    ]
    assert not any(one.is_contiguous() for one in (*strided, upstream))
    found, expected = (PRODUCTS[product](one[0], weight, bias, KronFactors(*one[1:]), start) for one in (strided, plain))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    gradients = (torch.autograd.grad(y, wanted, upstream) for y, wanted in ((found, strided), (expected, plain)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_kept_matrix_serves_the_type_that_asks_for_it() -> None:
    size, kept = (2, 8, 8, 8, 8), Kept[Tensor]()
    now, start = factors(size, 0, dtype=torch.float32), factors(size, 1, dtype=torch.float32)
    x = inputs(size, 64, dtype=torch.float32)
    for autocast in (True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = matrix_update(x, now, start, dense_gradients=False, kept=kept)
            assert torch.equal(found, matrix_update(x, now, start, dense_gradients=False))


@pytest.mark.parametrize("product", PRODUCTS)
def test_gradients_agree_with_finite_differences(product: str) -> None:
    size = (2, 2, 3, 3, 2)
    start, (weight, bias) = factors(size, 1), layer(size)

    def function(x: Tensor, *parts: Tensor) -> Tensor:
        return PRODUCTS[product](x, weight, bias, KronFactors(*parts), start)

    now = factors(size, 0, grad=True)
    assert torch.autograd.gradcheck(function, (inputs(size, 4).requires_grad_(), now.left, now.right, now.sigma))


# A layer merges where everything is fp32 only: a narrower type rounds the update away.
STARTS = [
    (product, autocast, dtype)
    for product in PRODUCTS
    for autocast in (False, True)
    for dtype in (torch.float32, torch.bfloat16)
    if not product.startswith("merged") or (not autocast and dtype == torch.float32)
]


@pytest.mark.parametrize(("product", "autocast", "dtype"), STARTS, ids=str)
def test_the_start_is_the_base_bit_for_bit(product: str, autocast: bool, dtype: torch.dtype) -> None:
    size = (3, 8, 4, 4, 16)
    now, start = factors(size, 0, dtype=torch.float32), factors(size, 0, dtype=torch.float32)
    weight, bias = layer(size, dtype)
    x = inputs(size, 2, 40, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(PRODUCTS[product](x, weight, bias, now, start), F.linear(x, weight, bias))


def test_a_turned_weight_gives_conv1d_bit_for_bit_and_the_same_gradients() -> None:
    size = (2, 3, 4, 2, 5)
    now, start = factors(size, 0, grad=True), factors(size, 1)
    weight, bias = layer(size)
    turned = weight.T.contiguous()
    x = inputs(size, 2, 3).requires_grad_()
    expected = torch.addmm(bias, x.view(-1, 20), turned).view(2, 3, 6)
    assert torch.equal(merged_linear(x, turned, bias, start, start, fan_in_fan_out=True), expected)
    found = merged_linear(x, turned, bias, now, start, fan_in_fan_out=True)
    straight = merged_linear(x, weight, bias, now, start)
    wanted = (x, now.left, now.right, now.sigma)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), wanted), torch.autograd.grad(straight.square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_bias_that_is_trained_gets_its_gradient() -> None:
    size = SIZES[0]
    weight, bias = layer(size)
    y = merged_linear(inputs(size, 5), weight, bias.requires_grad_(), factors(size, 0), factors(size, 1))
    (found,) = torch.autograd.grad(y.sum(), bias)
    torch.testing.assert_close(found, torch.full_like(bias, 5.0))


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_input_alone_is_kept_for_backward(product: str) -> None:
    """Whatever else is saved are the weights and factors themselves, which are there anyway."""
    size = (4, 8, 8, 8, 8)
    now, start = factors(size, 0, grad=True), factors(size, 1)
    weight, bias = layer(size)
    x = inputs(size, 256).requires_grad_()
    there = {one.data_ptr() for one in (x, weight, bias, now.left, now.right, now.sigma, start.left, start.right, start.sigma)}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        PRODUCTS[product](x, weight, bias, now, start)
    assert saved
    assert {one.data_ptr() for one in saved} <= there


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_gradient_is_computed_for_what_needs_none(product: str) -> None:
    size = SIZES[0]
    weight, bias = layer(size)
    x = inputs(size, 5).requires_grad_()
    assert PRODUCTS[product](x, weight, bias, factors(size, 0), factors(size, 1)).requires_grad
    now = factors(size, 0, grad=True)
    y = PRODUCTS[product](x.detach(), weight, bias, now, factors(size, 1))
    assert all(one is not None for one in torch.autograd.grad(y.sum(), (now.left, now.right, now.sigma)))


@pytest.mark.parametrize("product", ["factored", "matrix", "matrix, dense"])
def test_under_autocast_the_product_is_bfloat16_and_gradients_of_factors_keep_their_type(product: str) -> None:
    size = (2, 8, 8, 8, 8)
    now, start = factors(size, 0, dtype=torch.float32, grad=True), factors(size, 1, dtype=torch.float32)
    weight, bias = layer(size, torch.float32)
    x = inputs(size, 64, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = PRODUCTS[product](x, weight, bias, now, start)
    assert y.dtype == torch.bfloat16
    wanted = (x, now.left, now.right, now.sigma)
    found = torch.autograd.grad(y.float().square().sum(), wanted)
    exact = torch.autograd.grad(reference(x, weight, bias, now, start).square().sum(), wanted)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 0.03


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_compiled_product_has_no_graph_break_and_the_same_gradients(product: str) -> None:
    size = (2, 4, 4, 4, 4)
    now, start = factors(size, 0, grad=True), factors(size, 1)
    weight, bias = layer(size)
    x = inputs(size, 2, 5).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(PRODUCTS[product], fullgraph=True, backend="aot_eager")
    wanted = (x, now.left, now.right, now.sigma)
    for one, other in zip(
        torch.autograd.grad(compiled(x, weight, bias, now, start).square().sum(), wanted),
        torch.autograd.grad(PRODUCTS[product](x, weight, bias, now, start).square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("product", PRODUCTS)
def test_without_theta0_it_is_the_sum_of_theta_alone(product: str) -> None:
    size = SIZES[0]
    now, nothing = factors(size, 0, grad=True), factors(size, 1)
    nothing = KronFactors(nothing.left, nothing.right, torch.zeros_like(nothing.sigma))
    weight, bias = layer(size)
    x = inputs(size, 2, 3).requires_grad_()
    wanted = (x, now.left, now.right, now.sigma)
    found, expected = PRODUCTS[product](x, weight, bias, now, None), reference(x, weight, bias, now, nothing)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), wanted), torch.autograd.grad(expected.square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
