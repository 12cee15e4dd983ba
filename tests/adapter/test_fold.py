"""theta0 folded into the base weight: the same function, half the terms, and nobody who reads the layer notices."""

import copy
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from soka_cli.adapter import SokaConfig, SokaLayer
from soka_cli.adapter.fold import fold_start, unfold_start
from soka_cli.adapter.products import keep_matrices
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import PLANS, Work
from soka_cli.kron import linear as products
from soka_cli.kron.plan import multiply_adds
from tests.adapter import models
from tests.adapter.test_products import DTYPES, PRODUCTS, adapted, gradients


def folded(kind: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> PeftModel:
    network = adapted(kind, dtype, **fields)
    fold_start(network)
    return network


def weights(network: nn.Module) -> list[Tensor]:
    return [layer.get_base_layer().weight for layer in models.layers(network)]


def assert_equal(found: Any, expected: Any) -> None:
    """Two lists or mappings of tensors, bit for bit."""
    assert len(found) == len(expected) > 0
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else ((found[name], expected[name]) for name in expected)
    assert all(torch.equal(one, other) for one, other in pairs)


def one_layer(seed: int, product: str, base: type[nn.Module] = nn.Linear) -> SokaLayer:
    """A layer of random sizes, trained a little."""
    drawn = random.Random(seed)
    m, n, p, q = (drawn.randint(1, 6) for _ in range(4))
    torch.manual_seed(seed)
    made = nn.Linear(n * q, m * p) if base is nn.Linear else Conv1D(m * p, n * q)
    config = SokaConfig(target_modules=["0"], shape={"m": m, "n": n}, rank={"rule": "fixed", "value": drawn.randint(1, 4)}, product=product)
    network = get_peft_model(nn.Sequential(made), config)
    models.train_a_little(network, 0.3)
    return network.base_model.model[0]


# ---- the same function


@pytest.mark.parametrize("base", [nn.Linear, Conv1D])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("product", PRODUCTS)
def test_values_and_gradients_of_layers_of_any_shape_stay(product: str, seed: int, base: type[nn.Module]) -> None:
    layer = one_layer(seed, product, base)
    x = torch.randn(3, 7, layer.in_features, requires_grad=True)
    upstream = torch.randn(3, 7, layer.out_features)
    wanted = (x, *(one for one in layer.parameters() if one.requires_grad))
    before = (y := layer(x), *torch.autograd.grad(y, wanted, upstream))
    assert layer.fold("default") == 0.0
    after = (y := layer(x), *torch.autograd.grad(y, wanted, upstream))
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), before[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_model_that_is_trained_folded_is_the_one_that_is_trained_apart(product: str, kind: str) -> None:
    one, other = adapted(kind, product=product), folded(kind, product=product)
    torch.testing.assert_close(models.output(other), models.output(one), rtol=1e-5, atol=1e-5)
    for network in (one, other):
        models.train_a_little(network, 0.3)
    torch.testing.assert_close(models.output(other), models.output(one), rtol=1e-4, atol=1e-5)
    if kind != "bert":  # which has no loss
        found, expected = gradients(other), gradients(one)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("product", PLANS)
def test_the_terms_of_theta0_are_not_computed(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terms: list[int] = []
    for name in ("apply_terms", "add_terms"):
        whole = getattr(products, name)
        counting = lambda first, left, right, whole=whole: (terms.append(len(left)), whole(first, left, right))[1]  # noqa: E731
        monkeypatch.setattr(products, name, counting)
    layer = one_layer(1, product)
    rank = len(layer.soka_sigma["default"])
    x = torch.randn(5, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    layer.fold("default")
    layer(x).sum().backward()
    assert terms == [2 * rank, 2 * rank, rank, rank]


@pytest.mark.parametrize("plan", PLANS)
def test_the_planner_counts_half_of_them(plan: Any) -> None:
    work = {"sizes": (4, 8, 8, 8, 8), "vectors": 64, "inside": True, "trained": False}
    assert 2 * multiply_adds(plan, Work(**work, folded=True)) == multiply_adds(plan, Work(**work))


@pytest.mark.parametrize("product", PRODUCTS)
def test_activation_checkpointing_changes_no_gradient_of_a_folded_model(product: str) -> None:
    network = folded(product=product)
    models.train_a_little(network, 0.3)
    network.train()
    expected = gradients(network)
    models.checkpoint_activations(network)
    assert_equal(gradients(network), expected)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_compiled_folded_layer_has_no_graph_break(product: str) -> None:
    layer = one_layer(2, product)
    layer.fold("default")
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    wanted = (x, *(one for one in layer.parameters() if one.requires_grad))
    for one, other in zip(
        torch.autograd.grad(compiled(x).square().sum(), wanted), torch.autograd.grad(layer(x).square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("product", PLANS)
def test_kept_matrices_follow_folding_and_unfolding(product: str) -> None:
    network = adapted(product=product)
    models.train_a_little(network, 0.3)
    apart = models.output(network)
    keep_matrices(network, 1 << 30)
    models.output(network)
    fold_start(network)
    assert all(layer.kept is not None and layer.kept._made is None for layer in models.layers(network))  # an address may serve twice
    torch.testing.assert_close(models.output(network), apart, rtol=1e-4, atol=1e-5)
    unfold_start(network)
    assert torch.equal(models.output(network), apart)


# ---- bit for bit what it was


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_unfolding_puts_every_bit_back(kind: str, dtype: torch.dtype) -> None:
    network = adapted(kind, dtype)
    before, places = [weight.clone() for weight in weights(network)], [weight.data_ptr() for weight in weights(network)]
    folding = fold_start(network)
    assert (folding.layers, folding.bytes) == (len(before), sum(weight.nbytes for weight in before))
    assert not any(torch.equal(one, other) for one, other in zip(weights(network), before, strict=True))
    unfold_start(network)
    assert_equal(weights(network), before)
    assert [weight.data_ptr() for weight in weights(network)] == places


def test_rounding_is_that_of_the_bases_type() -> None:
    assert fold_start(adapted()).rounding == 0.0
    assert 1e-4 < fold_start(adapted(dtype=torch.bfloat16)).rounding < 2**-8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_disabling_gives_the_base_bit_for_bit_and_leaves_it_folded(product: str, kind: str, dtype: torch.dtype) -> None:
    base = models.output(models.model(kind, dtype))
    network = folded(kind, dtype, product=product)
    models.train_a_little(network, 0.3)
    trained = models.output(network)
    with network.disable_adapter():
        assert torch.equal(models.output(network), base)
    assert torch.equal(models.output(network), trained) and not torch.equal(trained, base)
    assert all(layer.folded == "default" for layer in models.layers(network))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_unloading_gives_the_base_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    base = models.model(kind, dtype)
    network = folded(kind, dtype)
    models.train_a_little(network, 0.3)
    assert_equal(dict(network.unload().state_dict()), dict(base.state_dict()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_is_what_it_is_apart_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    one, other = adapted(kind, dtype), folded(kind, dtype)
    before = [weight.clone() for weight in weights(one)]
    for network in (one, other):
        models.train_a_little(network, 0.3)
        network.merge_adapter()
    assert_equal(weights(other), weights(one))
    for network in (one, other):
        network.unmerge_adapter()
    assert_equal(weights(other), before)
    assert torch.equal(models.output(other), models.output(one))
    assert_equal(
        dict(folded(kind, dtype).merge_and_unload(safe_merge=True).state_dict()), dict(adapted(kind, dtype).merge_and_unload().state_dict())
    )


def test_the_update_as_a_matrix_is_the_difference() -> None:
    one, other = adapted(), folded()
    for network in (one, other):
        models.train_a_little(network, 0.3)
    assert_equal(*([layer.get_delta_weight("default") for layer in models.layers(network)] for network in (other, one)))


# ---- files and copies


def test_saved_files_are_the_same_bytes(tmp_path: Path) -> None:
    for name, network in (("apart", adapted()), ("folded", folded())):
        models.train_a_little(network, 0.3)
        network.save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "apart").iterdir())
    assert "adapter_model.safetensors" in files and files == sorted(path.name for path in (tmp_path / "folded").iterdir())
    assert all((tmp_path / "folded" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes() for name in files)


def test_the_state_of_the_whole_model_has_the_weights_as_they_were() -> None:
    network = adapted()
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fold_start(network)
    found = network.state_dict()
    assert list(found) == list(expected)
    assert_equal(dict(found), expected)


def test_values_that_are_loaded_into_a_folded_model_are_folded_in(tmp_path: Path) -> None:
    """Another base and another theta0."""
    source = get_peft_model(models.builders.tiny_model(seed=3), models.config(init="random"))
    models.train_a_little(source, 0.3)
    network = folded()
    network.load_state_dict(source.state_dict())
    assert all(layer.folded == "default" for layer in models.layers(network))
    torch.testing.assert_close(models.output(network), models.output(source), rtol=1e-4, atol=1e-5)
    unfold_start(network)
    assert_equal(weights(network), weights(source))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_folded_by_itself(copied: Any) -> None:
    layer = one_layer(1, "auto")
    pristine = layer.base_layer.weight.clone()
    layer.fold("default")
    x = torch.randn(4, layer.in_features)
    other = copied(layer)
    layer.unfold()
    assert other.folded == "default"
    torch.testing.assert_close(other(x), layer(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(other.get_base_weight(), pristine)
    other.unfold()
    assert torch.equal(other.base_layer.weight, pristine)


def test_a_cast_casts_the_weight_as_it_was() -> None:
    expected = [weight.to(torch.bfloat16) for weight in weights(adapted())]
    network = folded().to(torch.bfloat16)
    assert all(layer.folded == "default" for layer in models.layers(network))
    unfold_start(network)
    assert_equal(weights(network), expected)


# ---- more than one adapter


def test_a_second_adapter_starts_from_the_weight_as_it_was() -> None:
    one, other = adapted(), folded()
    for network in (one, other):
        network.add_adapter("other", models.config(shape={"m": 2, "n": 2}))
    for found, expected in zip(models.layers(other), models.layers(one), strict=True):
        assert found.folded == "default"
        assert torch.equal(found.soka_U["other"], expected.soka_U["other"])


@pytest.mark.parametrize("product", PRODUCTS)
def test_another_active_adapter_unfolds_by_itself(product: str) -> None:
    one, other = adapted(product=product), folded(product=product)
    for network in (one, other):
        network.add_adapter("other", models.config(product=product))
        models.train_a_little(network, 0.3, "other")
        network.set_adapter("other")
    assert not any(layer.folded for layer in models.layers(other))
    assert torch.equal(models.output(other), models.output(one))


def test_an_adapter_beside_the_folded_one_adds_its_difference() -> None:
    one, other = adapted(), folded()
    for network in (one, other):
        network.add_adapter("other", models.config())
        models.train_a_little(network, 0.3, "other")
        network.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(models.output(other), models.output(one), rtol=1e-4, atol=1e-5)


def test_a_deleted_adapter_leaves_the_weight_as_it_was() -> None:
    network = folded()
    network.add_adapter("other", models.config())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.delete_adapter("default")
    assert_equal(weights(network), weights(adapted()))


# ---- what is refused


def assert_refused(network: nn.Module, words: str) -> None:
    before = [weight.clone() for weight in weights(network)]
    with pytest.raises(SokaError, match="cannot be folded") as caught:
        fold_start(network)
    assert caught.value.exit_code is ExitCode.USAGE and words in caught.value.why
    assert not any(layer.folded for layer in models.layers(network))
    assert_equal(weights(network), before)


def test_merged_adapters_are_refused() -> None:
    network = adapted()
    network.merge_adapter()
    assert_refused(network, "adapters are merged into it")


def test_several_active_adapters_are_refused() -> None:
    network = adapted()
    network.add_adapter("other", models.config())
    network.base_model.set_adapter(["default", "other"])
    assert_refused(network, "2 adapters are active")


def test_a_trained_base_weight_is_refused_by_its_name() -> None:
    network = adapted()
    weights(network)[-1].requires_grad_(True)
    assert_refused(network, "layers.1.mlp.down_proj: its weight is trained")


def test_a_watched_layer_is_refused() -> None:
    network = adapted()
    models.layers(network)[0].base_layer.register_forward_hook(lambda *_: None)
    assert_refused(network, "hooks look at its inputs or results")


def test_a_weight_that_the_embedding_shares_is_refused() -> None:
    base = models.model("gpt2")
    assert base.lm_head.weight is base.transformer.wte.weight
    network = get_peft_model(base, models.config("gpt2", target_modules=["lm_head"]))
    assert_refused(network, "its weight is another module's too")


def test_a_weight_without_values_is_refused() -> None:
    with torch.device("meta"):
        base = nn.Sequential(nn.Linear(6, 4))
    network = get_peft_model(base, SokaConfig(target_modules=["0"], rank={"rule": "fixed", "value": 1}))
    with pytest.raises(ValueError, match="no values yet"):
        network.base_model.model[0].fold("default")
