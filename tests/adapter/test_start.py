"""What `shape` and `init` of a SokaConfig make of a layer's weight, through PEFT's own door."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict

from soka_cli.adapter import SokaConfig, attach_factors, start, weight_digest, write_factors
from soka_cli.adapter.start import make_start, within
from soka_cli.kron import KronFactors, KronShape, RankRule, balanced, kron_dense, module_seed, search_budget, search_shape
from tests.adapter import models

FROM_DATA = ("gradient", "early-update")


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def factor_file(tmp_path: Path) -> Path:
    """Terms that no weight has, for every target of the tiny Llama."""
    network = models.model()
    modules = {name: network.get_submodule(name) for name in models.config_targets(network)}
    terms = {}
    for index, (name, module) in enumerate(modules.items()):
        shape = balanced(module.out_features, module.in_features)
        terms[name] = KronFactors(drawn(2, shape.m, shape.n, seed=index), drawn(2, shape.p, shape.q, seed=index), torch.tensor([2.0, 1.0]))
    path = tmp_path / "factors.safetensors"
    write_factors(path, terms, {name: weight_digest(module.weight) for name, module in modules.items()}, base="tiny")
    return path


# ---- shapes


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert"])
def test_a_searched_shape_is_the_one_that_the_search_finds_in_the_weight(kind: str) -> None:
    config = models.config(kind, shape="search")
    network = models.model(kind)
    adapted = get_peft_model(models.model(kind), config)
    assert torch.equal(models.output(adapted), models.output(network))
    assert config.shape_pattern and config.shape == "search"
    for name, chosen in config.shape_pattern.items():
        weight = network.get_submodule(name).weight.detach()
        weight = weight.T if kind == "gpt2" else weight
        found = search_shape(weight, search_budget(RankRule("fixed", value=3), *weight.shape), seed=module_seed(0, name))
        assert (chosen["m"], chosen["n"]) == (found.chosen.shape.m, found.chosen.shape.n)
        assert config.rank_pattern[name] == found.chosen.terms <= 3


def test_a_searched_adapter_is_saved_and_loaded_without_a_second_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = get_peft_model(models.model(), models.config(shape="search"))
    models.train_a_little(adapted)
    adapted.save_pretrained(tmp_path)
    monkeypatch.setattr(start, "search_shape", models.forbidden)
    loaded = PeftModel.from_pretrained(models.model(), tmp_path)
    assert torch.equal(models.output(loaded), models.output(adapted))


def test_a_pattern_searches_its_modules_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(weight: torch.Tensor, parameters: int, **options: Any) -> Any:
        sizes.append(tuple(weight.shape))
        return search_shape(weight, parameters, **options)

    monkeypatch.setattr(start, "search_shape", counted)
    get_peft_model(models.model(), models.config(shape_pattern={"v_proj": "search"}))
    assert sizes == [(16, 32), (16, 32)]


def test_a_searched_shape_keeps_no_more_terms_than_its_budget_pays_for() -> None:
    """A weight that one dear term holds whole: two balanced terms pay for one of it."""
    shape = KronShape(16, 1, 3, 48)
    weight = kron_dense(drawn(1, 16, 1), drawn(1, 3, 48), torch.ones(1))
    found = make_start(weight, SokaConfig(shape="search", rank={"rule": "fixed", "value": 2}), "any")
    assert (found.factors.shape, found.factors.rank) == (shape, 1)
    assert shape.parameters(1) <= balanced(48, 48).parameters(2) < shape.parameters(2)


@pytest.mark.parametrize(("rule", "limited"), [(RankRule("fixed", value=5), 5), (RankRule(max=9), 9)])
def test_a_rule_within_a_number_of_terms_gives_at_most_these(rule: RankRule, limited: int) -> None:
    assert within(rule, limited + 1) == rule
    small = within(rule, 2)
    assert (small.value if rule.rule == "fixed" else small.max) == 2


# ---- random


def test_a_random_start_is_the_base_bit_for_bit_and_no_two_modules_share_it() -> None:
    config = models.config(init="random")
    adapted = get_peft_model(models.model(), config)
    assert torch.equal(models.output(adapted), models.output(models.model()))
    heads = [layer.start_factors("default").left[0] for layer in models.layers(adapted)]
    assert len({head.flatten()[0].item() for head in heads}) == len(heads)


def test_a_random_start_follows_from_seed_and_name_alone() -> None:
    def starts(**fields: Any) -> dict[str, torch.Tensor]:
        adapted = get_peft_model(models.model(), models.config(init="random", **fields))
        return {name: tensor for name, tensor in get_peft_model_state_dict(adapted).items() if name.endswith("soka_U")}

    first, again, other = starts(), starts(target_modules=["v_proj"]), starts(seed=1)
    assert again and all(torch.equal(tensor, first[name]) for name, tensor in again.items())
    assert not any(torch.equal(tensor, first[name]) for name, tensor in other.items())


def test_a_random_start_has_the_weights_ranks_and_sigmas() -> None:
    rule = {"rule": "min", "tau": 0.9, "max": 6}
    own, random = models.config(rank=rule), models.config(rank=rule, init="random")
    layers = [models.layers(get_peft_model(models.model(), config)) for config in (own, random)]
    assert own.rank_pattern == random.rank_pattern
    for one, other in zip(*layers, strict=True):
        assert torch.equal(one.start_factors("default").sigma, other.start_factors("default").sigma)
        assert not torch.equal(one.start_factors("default").left, other.start_factors("default").left)


# ---- starts from data


@pytest.mark.parametrize("init", FROM_DATA)
def test_a_start_from_data_is_refused_without_its_factors_and_the_message_says_how(init: str) -> None:
    network = models.model()
    with pytest.raises(ValueError, match=rf"q_proj: init {init} starts from data.*soka decompose.*attach_factors\(model, config"):
        get_peft_model(network, models.config(init=init))
    assert not models.layers(network)


@pytest.mark.parametrize("init", FROM_DATA)
def test_a_start_from_data_is_attached_from_its_factors(factor_file: Path, init: str) -> None:
    adapted = attach_factors(models.model(), models.config(init=init), factor_file)
    assert torch.equal(models.output(adapted), models.output(models.model()))
    assert all(layer.factors("default").sigma.tolist() == [2.0, 1.0] for layer in models.layers(adapted))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("init", FROM_DATA)
def test_a_saved_adapter_from_data_is_loaded_again(
    factor_file: Path, tmp_path: Path, init: str, low_cpu_mem_usage: bool, trainable: bool
) -> None:
    adapted = attach_factors(models.model(), models.config(init=init), factor_file)
    models.train_a_little(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(models.model(), tmp_path / "adapter", is_trainable=trainable, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(models.output(loaded), models.output(adapted))
    state, again = get_peft_model_state_dict(adapted), get_peft_model_state_dict(loaded)
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
    assert any(parameter.requires_grad for parameter in loaded.parameters()) == trainable
    assert loaded.peft_config["default"].init == init


def test_transformers_loads_a_saved_adapter_from_data(factor_file: Path, tmp_path: Path) -> None:
    adapted = attach_factors(models.model(), models.config(init="gradient"), factor_file)
    models.train_a_little(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    network = models.model()
    network.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(models.output(network), models.output(adapted))


def test_a_matrix_in_the_weights_place_gives_direction_and_rank_and_the_weight_the_norm() -> None:
    weight, matrix = drawn(24, 30), 1e-6 * drawn(24, 30, seed=1)
    config = SokaConfig(shape={"m": 4, "n": 5}, init="gradient", rank={"rule": "fixed", "value": 4})
    plain = SokaConfig(shape={"m": 4, "n": 5}, rank={"rule": "fixed", "value": 4})
    found = make_start(weight, config, "any", matrix=matrix)
    own, other = make_start(weight, plain, "any"), make_start(matrix, plain, "any")
    assert float(found.factors.sigma.norm()) == pytest.approx(float(own.factors.sigma.norm()), rel=1e-6)
    assert torch.equal(found.factors.left, other.factors.left) and torch.equal(found.factors.right, other.factors.right)
    assert found.found.total_energy == other.found.total_energy
