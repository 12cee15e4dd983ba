"""What a SoKA layer computes: the start, the product, merging."""

import warnings

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from soka_cli.adapter import SokaConfig, SokaLayer
from soka_cli.kron import KronFactors, factored_update
from tests.adapter import models

DTYPES = [torch.float32, torch.bfloat16]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def one_layer(**fields: object) -> tuple[nn.Linear, SokaLayer]:
    """A 20 x 12 layer and the same with an adapter."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 20))
    plain = nn.Linear(12, 20)
    plain.load_state_dict(network[0].state_dict())
    wrapped = get_peft_model(network, SokaConfig(target_modules=["0"], **({"rank": models.FIXED} | fields)))
    return plain, wrapped.base_model.model[0]


def dense_difference(layer: SokaLayer) -> Tensor:
    """sum sigma U (x) V - sum sigma0 U0 (x) V0 by torch.kron, differentiable."""

    def dense(factors: KronFactors) -> Tensor:
        return sum(s * torch.kron(u, v) for s, u, v in zip(factors.sigma, factors.left, factors.right, strict=True))

    return dense(layer.factors("default")) - dense(layer.start_factors("default"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", models.TARGETS)
def test_the_start_is_the_base_model_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    before = models.output(models.model(kind, dtype))
    adapted = get_peft_model(models.model(kind, dtype), models.config(kind))
    assert len(models.layers(adapted)) >= 4
    assert torch.equal(models.output(adapted), before)


@pytest.mark.parametrize("kind", models.TARGETS)
def test_a_start_that_is_not_the_identity_can_be_asked_for(kind: str) -> None:
    before = models.output(models.model(kind))
    adapted = get_peft_model(models.model(kind), models.config(kind, init_weights=False))
    assert (models.output(adapted) - before).abs().max() > 1e-3


@pytest.mark.parametrize("shape", ["balanced", {"m": 20, "n": 1}, {"block": 4}], ids=str)
def test_the_layer_is_the_base_plus_the_dense_difference_in_values_and_gradients(shape: object) -> None:
    plain, layer = one_layer(shape=shape)
    models.train_a_little(layer, 0.3)
    parameters = [layer.soka_U["default"], layer.soka_V["default"], layer.soka_sigma["default"]]
    x, weights = torch.randn(5, 3, 12, requires_grad=True), torch.randn(5, 3, 20)
    fast = layer(x)
    dense = plain(x) + x @ dense_difference(layer).T
    torch.testing.assert_close(fast, dense, rtol=1e-4, atol=1e-5)
    for got, expected in zip(
        torch.autograd.grad((fast * weights).sum(), [x, *parameters]),
        torch.autograd.grad((dense * weights).sum(), [x, *parameters]),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_small_step_survives_bfloat16_products() -> None:
    """Two large products rounded to bf16 and then subtracted would leave noise of 4e-3 |K x| here."""
    _, layer = one_layer()
    models.train_a_little(layer, 1e-4)
    x = torch.randn(64, 12)
    with torch.no_grad():
        exact = x @ dense_difference(layer).T
        with torch.autocast("cpu", torch.bfloat16):
            update = factored_update(x, layer.factors("default"), layer.start_factors("default"))
    assert (update - exact).norm() / exact.norm() < 0.02


def test_factors_keep_fp32_digits_over_a_bfloat16_base() -> None:
    weight = models.model("llama", torch.bfloat16).model.layers[0].self_attn.q_proj.weight
    adapted = get_peft_model(models.model("llama", torch.bfloat16), models.config())
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    factors = layer.factors("default")
    assert {tensor.dtype for tensor in (factors.left, factors.right, factors.sigma)} == {torch.float32}
    assert not torch.equal(factors.left, factors.left.bfloat16().float())
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.base_layer.weight, weight)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_merging_an_untrained_adapter_returns_the_weight_bit_for_bit(dtype: torch.dtype) -> None:
    _, layer = one_layer()
    layer.base_layer.to(dtype)
    layer.base_layer.weight.data[0, 0] = -0.0
    before = bits(layer.base_layer.weight)
    layer.merge(safe_merge=True)
    assert layer.merged
    assert bits(layer.base_layer.weight) == before


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert"])
def test_merged_is_the_adapters_forward(kind: str) -> None:
    adapted = get_peft_model(models.model(kind), models.config(kind))
    base = models.output(adapted)
    models.train_a_little(adapted, 0.5)
    expected = models.output(adapted)
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(models.output(adapted.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merging_adds_in_fp32_and_rounds_once(dtype: torch.dtype) -> None:
    plain, layer = one_layer()
    layer.base_layer.to(dtype)
    models.train_a_little(layer, 0.5)
    layer.merge()
    expected = plain.weight.to(dtype).float() + layer.get_delta_weight("default")
    assert torch.equal(layer.base_layer.weight, expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unmerging_restores_the_weight_bit_for_bit(dtype: torch.dtype) -> None:
    _, layer = one_layer()
    layer.base_layer.to(dtype)
    models.train_a_little(layer, 0.5)
    before = bits(layer.base_layer.weight)
    layer.merge()
    assert bits(layer.base_layer.weight) != before
    layer.unmerge()
    assert bits(layer.base_layer.weight) == before
    assert not layer.merged


def test_merging_twice_warns_and_changes_nothing() -> None:
    _, layer = one_layer()
    models.train_a_little(layer, 0.5)
    layer.merge()
    once = bits(layer.base_layer.weight)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        layer.merge()
    assert bits(layer.base_layer.weight) == once


def test_unmerging_what_is_not_merged_warns() -> None:
    _, layer = one_layer()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_a_safe_merge_of_nan_is_refused_before_the_weight_is_touched() -> None:
    _, layer = one_layer()
    layer.soka_U["default"].data[0, 0, 0] = torch.nan
    before = bits(layer.base_layer.weight)
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems to be broken"):
        layer.merge(safe_merge=True)
    assert bits(layer.base_layer.weight) == before
    assert not layer.merged


def test_adapters_merged_one_after_the_other_are_those_merged_together() -> None:
    """Each merge starts from the pristine weight, so nothing is rounded twice."""
    weights = []
    for steps in ([["default", "other"]], [["default"], ["other"]]):
        adapted = get_peft_model(models.model("llama", torch.bfloat16), models.config())
        adapted.add_adapter("other", models.config(rank={"rule": "fixed", "value": 1}))
        models.train_a_little(adapted, 0.5)
        models.train_a_little(adapted, 0.5, "other")
        for names in steps:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapted.base_model.merge_adapter(names)
        weights.append([bits(layer.base_layer.weight) for layer in models.layers(adapted)])
    assert weights[0] == weights[1]


def test_an_adapter_added_over_a_merged_one_starts_from_the_pristine_weight() -> None:
    adapted = get_peft_model(models.model(), models.config())
    models.train_a_little(adapted, 0.5)
    adapted.merge_adapter()
    adapted.add_adapter("other", models.config())
    for layer in models.layers(adapted):
        assert torch.equal(layer.start_factors("other").left, layer.start_factors("default").left)


def test_disabling_gives_the_base_and_enabling_the_adapter_again() -> None:
    adapted = get_peft_model(models.model(), models.config())
    base = models.output(adapted)
    models.train_a_little(adapted, 0.5)
    trained = models.output(adapted)
    with adapted.disable_adapter():
        assert torch.equal(models.output(adapted), base)
    assert torch.equal(models.output(adapted), trained)
    adapted.merge_adapter()
    with adapted.disable_adapter():
        assert torch.equal(models.output(adapted), base)


def test_two_active_adapters_add_up() -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(nn.Sequential(nn.Linear(12, 20)), SokaConfig(target_modules=["0"], rank=models.FIXED))
    adapted.add_adapter("other", SokaConfig(target_modules=["0"], shape={"m": 2, "n": 2}, rank=models.FIXED))
    models.train_a_little(adapted, 0.5)
    models.train_a_little(adapted, 0.5, "other")
    x = torch.randn(7, 12)
    parts = {}
    for name in ("default", "other"):
        adapted.set_adapter(name)
        parts[name] = adapted(x)
    adapted.base_model.set_adapter(["default", "other"])
    with adapted.disable_adapter():
        base = adapted(x)
    torch.testing.assert_close(adapted(x), parts["default"] + parts["other"] - base, rtol=1e-4, atol=1e-5)


def test_peft_s_lokr_with_full_factors_adds_up_to_the_same_function() -> None:
    """Independent code: each term of K(theta), and of -K(theta0), as one LoKr adapter; all active."""
    from peft import LoKrConfig

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    soka = get_peft_model(network, SokaConfig(target_modules=["0"], shape={"m": 8, "n": 8}, rank=models.FIXED))
    models.train_a_little(soka, 0.5)
    layer = soka.base_model.model[0]
    now, start = layer.factors("default"), layer.start_factors("default")
    terms = [*zip(now.sigma, now.left, now.right, strict=True), *zip(-start.sigma, start.left, start.right, strict=True)]

    other = nn.Sequential(nn.Linear(64, 64))
    other.load_state_dict(weights)
    lokr_config = LoKrConfig(r=64, alpha=64, target_modules=["0"])
    lokr = get_peft_model(other, lokr_config, adapter_name="term0")
    for index in range(1, len(terms)):
        lokr.add_adapter(f"term{index}", lokr_config)
    stock = lokr.base_model.model[0]
    for index, (sigma, left, right) in enumerate(terms):
        stock.lokr_w1[f"term{index}"].data = (sigma * left).detach()
        stock.lokr_w2[f"term{index}"].data = right.detach().clone()
    lokr.base_model.set_adapter([f"term{index}" for index in range(len(terms))])
    x = torch.randn(9, 64)
    torch.testing.assert_close(lokr(x), soka(x), rtol=1e-4, atol=1e-5)


def test_a_module_that_is_not_linear_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.embed_tokens is a Embedding, which SoKA does not support"):
        get_peft_model(models.model(), SokaConfig(target_modules=["embed_tokens"]))


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    network = models.model()
    network.model.layers[1].self_attn.q_proj.weight.data[2, 3] = torch.inf
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.q_proj.*\(2, 3\)"):
        get_peft_model(network, models.config())


def test_a_shape_that_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj: m = 5 does not divide 32"):
        get_peft_model(models.model(), models.config(shape={"m": 5, "n": 4}))


def test_a_zero_weight_takes_an_adapter() -> None:
    network = nn.Sequential(nn.Linear(12, 20))
    nn.init.zeros_(network[0].weight)
    adapted = get_peft_model(network, SokaConfig(target_modules=["0"]))
    assert torch.isfinite(adapted(torch.randn(3, 12))).all()
