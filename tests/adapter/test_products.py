"""The plans through which a layer computes: the same function each, the base at the start, and a choice that can be seen."""

import copy
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from soka_cli.adapter import SokaConfig, SokaLayer
from soka_cli.adapter.products import keep_matrices, plans_used
from soka_cli.kron import PLANS, KronShape
from soka_cli.kron.contraction import order_costs
from soka_cli.recipe.schema import AdapterSection
from tests.adapter import models

PRODUCTS = ["auto", *PLANS]
DTYPES = [torch.float32, torch.bfloat16]


def adapted(kind: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> PeftModel:
    return get_peft_model(models.model(kind, dtype), models.config(kind, **fields))


def loss(network: nn.Module) -> Tensor:
    ids = torch.arange(4, 24).view(2, 10)
    return network(input_ids=ids, labels=ids).loss


def gradients(network: nn.Module) -> dict[str, Tensor]:
    network.zero_grad()
    loss(network).backward()
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(expected) >= 9
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_the_recipe_and_the_config_offer_every_plan() -> None:
    assert list(get_args(AdapterSection.model_fields["product"].annotation)) == PRODUCTS
    with pytest.raises(ValueError, match="product is 'fast'; there are: auto, factored, merged, dense"):
        SokaConfig(product="fast")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_plan_starts_as_the_base_bit_for_bit(product: str, kind: str, dtype: torch.dtype, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = models.output(models.model(kind, dtype))
        assert torch.equal(models.output(adapted(kind, dtype, product=product)), before)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("product", ["auto", "merged", "dense"])
def test_every_plan_has_the_values_and_gradients_of_the_factored_one(product: str, kind: str) -> None:
    one, other = adapted(kind, product=product), adapted(kind, product="factored")
    for network in (one, other):
        models.train_a_little(network, 0.3)
    torch.testing.assert_close(models.output(one), models.output(other), rtol=1e-4, atol=1e-5)
    assert_close(gradients(one), gradients(other))


@pytest.mark.parametrize("product", PLANS)
def test_a_forced_plan_is_the_one_that_runs_and_is_reported(product: str) -> None:
    network = adapted(product=product)
    loss(network).backward()
    models.output(network)  # not in training: not counted
    reported = plans_used(network, 20)
    assert {entry["type"] for entry in reported} == {"q_proj", "v_proj", "down_proj"}
    assert all((entry["layers"], entry["plan"], entry["passes"]) == (2, product, {product: 2}) for entry in reported)
    told = {"type": "q_proj", "shape": "4x8 (x) 8x4", "rank": 3, "layers": 2, "vectors": 20, "order": "U first"}
    assert reported[0] == told | {"plan": product, "passes": {product: 2}}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("vectors", [1, 20, 2000])
def test_the_plan_told_for_a_number_of_vectors_is_the_one_that_runs(vectors: int, autocast: bool) -> None:
    torch.manual_seed(0)
    network = get_peft_model(nn.Sequential(nn.Linear(64, 64)), SokaConfig(target_modules=["0"], rank={"rule": "fixed", "value": 8}))
    (told,) = plans_used(network, vectors, autocast=autocast)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        network(torch.randn(vectors, 64)).sum().backward()
    (used,) = plans_used(network, vectors, autocast=autocast)
    assert used["passes"] == {told["plan"]: 1}


def test_the_order_told_is_that_of_fewer_multiply_adds() -> None:
    told = {}
    for m, n in ((2, 16), (16, 2)):
        network = get_peft_model(
            nn.Sequential(nn.Linear(32, 32)), SokaConfig(target_modules=["0"], rank=models.FIXED, shape={"m": m, "n": n})
        )
        (entry,) = plans_used(network, 8)
        right_first, left_first = order_costs(KronShape(m, n, 32 // m, 32 // n))
        told[entry["order"]] = right_first <= left_first
    assert told == {"V first": True, "U first": False}


@pytest.mark.parametrize("product", PRODUCTS)
def test_activation_checkpointing_changes_no_gradient(product: str) -> None:
    network = adapted(product=product)
    models.train_a_little(network, 0.3)
    network.train()
    expected = gradients(network)
    models.checkpoint_activations(network)
    found = gradients(network)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("product", PLANS)
def test_kept_matrices_follow_the_optimizer_bit_for_bit(product: str) -> None:
    """Three accumulation windows of two, with and without."""
    weights = []
    for room in (0, 1 << 30):
        network = adapted(product=product)
        assert bool(keep_matrices(network, room)) == bool(room)
        optimizer = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=1e-2)
        for _ in range(3):
            loss(network).backward()
            (0.5 * loss(network)).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([one.clone() for one in network.parameters() if one.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_matrices_that_do_not_fit_are_not_kept() -> None:
    network = adapted()
    needed = 4 * sum(one.out_features * one.in_features for one in models.layers(network))
    assert keep_matrices(network, needed - 1) == 0
    assert keep_matrices(network, needed) == needed


def test_a_kept_matrix_survives_merging_disabling_and_copying() -> None:
    network = adapted(product="merged")
    keep_matrices(network, 1 << 30)
    base = models.output(network)
    models.train_a_little(network, 0.3)
    expected = models.output(network)
    copied = copy.deepcopy(network)
    models.train_a_little(network, 0.3)
    assert torch.equal(models.output(copied), expected)
    network.merge_adapter()
    network.unmerge_adapter()
    with network.disable_adapter():
        assert torch.equal(models.output(network), base)
    assert not torch.equal(models.output(network), expected)


def one_layer(product: str, **fields: Any) -> SokaLayer:
    torch.manual_seed(0)
    config = SokaConfig(target_modules=["0"], rank=models.FIXED, product=product, **fields)
    network = get_peft_model(nn.Sequential(nn.Linear(12, 20)), config)
    models.train_a_little(network, 0.3)
    return network.base_model.model[0]


@pytest.mark.parametrize("product", ["merged", "dense"])
def test_a_base_weight_that_is_trained_too_or_hooked_is_left_to_its_own_layer(product: str) -> None:
    layer = one_layer(product)
    x = torch.randn(5, 12)
    expected = layer(x)
    layer.base_layer.weight.requires_grad_(True)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.base_layer.weight.grad, x.sum(0).expand(20, 12))
    layer.base_layer.weight.requires_grad_(False)
    layer.base_layer.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(layer(x), expected + 1)


@pytest.mark.parametrize("product", ["merged", "dense"])
def test_a_lower_precision_of_products_keeps_the_update_out_of_the_weight(product: str) -> None:
    """In TF32 or BF16 the sum of weight and update would lose the update's digits."""
    layer = one_layer(product)
    x, factor = torch.randn(5, 12), layer.soka_U["default"]
    assert layer._takes_update(layer.base_layer, x, factor)
    torch.set_float32_matmul_precision("high")
    try:
        assert not layer._takes_update(layer.base_layer, x, factor)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer._takes_update(layer.base_layer, x, factor)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_small_step_survives_bfloat16_in_every_plan(product: str) -> None:
    layer = one_layer(product)
    start, now = layer.start_factors("default"), layer.factors("default")
    for trained, begun in ((now.left, start.left), (now.right, start.right), (now.sigma, start.sigma)):
        trained.data = begun + 1e-5 * begun.norm() * torch.randn_like(begun)
    x = torch.randn(64, 12)
    exact = x @ layer.get_delta_weight("default").T
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        update = layer._update(x, "default").float()
    assert (update - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("product", PRODUCTS)
def test_two_active_adapters_add_up_in_every_plan(product: str) -> None:
    torch.manual_seed(0)
    network = get_peft_model(nn.Sequential(nn.Linear(12, 20)), SokaConfig(target_modules=["0"], rank=models.FIXED, product=product))
    network.add_adapter("other", SokaConfig(target_modules=["0"], shape={"m": 2, "n": 2}, rank=models.FIXED, product=product))
    models.train_a_little(network, 0.5)
    models.train_a_little(network, 0.5, "other")
    layer = network.base_model.model[0]
    network.base_model.set_adapter(["default", "other"])
    x = torch.randn(7, 12)
    both = layer.get_delta_weight("default") + layer.get_delta_weight("other")
    torch.testing.assert_close(network(x), layer.base_layer(x) + x @ both.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_compiled_layer_has_no_graph_break(product: str) -> None:
    layer = one_layer(product)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 12, requires_grad=True)
    wanted = (x, *layer.parameters())
    wanted = tuple(one for one in wanted if one.requires_grad)
    for one, other in zip(
        torch.autograd.grad(compiled(x).square().sum(), wanted), torch.autograd.grad(layer(x).square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_empty_batch_gives_an_empty_result(product: str) -> None:
    layer = one_layer(product)
    y = layer(torch.zeros(2, 0, 12))
    assert y.shape == (2, 0, 20)
    y.sum().backward()
    assert not layer.soka_U["default"].grad.any()


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_layer_takes_inputs_that_are_not_contiguous(product: str) -> None:
    layer = one_layer(product)
    x = torch.randn(12, 5, 2).permute(2, 1, 0)
    wanted = tuple(one for one in layer.parameters() if one.requires_grad)
    results = [layer(one) for one in (x, x.contiguous())]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(2, 20, 5).transpose(1, 2)
    for one, other in zip(*(torch.autograd.grad(y, wanted, upstream) for y in results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
