"""Rule budget through PEFT: one total over all targets, modules without terms left alone, all of it in the saved config."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn

from soka_cli.adapter import FactorFile, SokaConfig, SokaLayer, SokaModel, attach_factors, start, weight_digest, write_factors
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import balanced
from tests.adapter import models

TERM = balanced(32, 32).term_parameters  # of the square targets of the tiny Llama
TARGETS = [f"model.layers.{index}.self_attn.{kind}_proj" for index in range(2) for kind in "qo"]


def budget(parameters: int | str, **options: Any) -> dict[str, Any]:
    return {"rule": "budget", "parameters": parameters, **options}


def config(parameters: int | str = 3 * TERM, **fields: Any) -> SokaConfig:
    return models.config(**({"target_modules": ["q_proj", "o_proj"], "rank": budget(parameters)} | fields))


def uneven(kind: str = "llama") -> Any:
    """A model whose second layer's weights are a hundredth of their size, so that a budget passes them by."""
    network = models.model(kind)
    with torch.no_grad():
        for name in TARGETS[2:]:
            network.get_submodule(name).weight *= 0.01
    return network


def adapted_names(network: nn.Module) -> set[str]:
    base = network.base_model.model if isinstance(network, PeftModel) else network
    return {name for name, module in base.named_modules() if isinstance(module, SokaLayer)}


@pytest.fixture
def no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "decompose_weight", models.forbidden)


def test_a_total_is_spent_over_all_targets_and_modules_without_a_term_get_no_layer() -> None:
    chosen = config(5 * TERM + 3)
    network = get_peft_model(uneven(), chosen)
    assert adapted_names(network) == set(TARGETS[:2])
    assert sum(chosen.rank_pattern.values()) == 5
    trained, _ = network.get_nb_trainable_parameters()
    assert trained == 5 * TERM
    assert all(isinstance(network.base_model.model.get_submodule(name), nn.Linear) for name in TARGETS[2:])


def test_the_terms_are_the_leading_ones_of_each_weight_and_the_start_is_the_base() -> None:
    base, chosen = models.model(), config(6 * TERM)
    network = get_peft_model(models.model(), chosen)
    assert torch.equal(models.output(network), models.output(base))
    for name in adapted_names(network):
        found: Any = network.base_model.model.get_submodule(name)
        rank = chosen.rank_pattern[name]
        alone = get_peft_model(models.model(), config(rank={"rule": "fixed", "value": rank}, target_modules=[name])).base_model.model
        expected = alone.get_submodule(name).start_factors("default")
        torch.testing.assert_close(found.start_factors("default").sigma, expected.sigma)
        assert found.factors("default").rank == rank


def test_the_most_energetic_terms_of_all_targets_are_kept() -> None:
    chosen = config(7 * TERM)
    get_peft_model(models.model(), chosen)
    energies = []
    for name in TARGETS:
        whole = get_peft_model(models.model(), config(rank={"rule": "fixed", "value": 8}, target_modules=[name])).base_model.model
        energies += [(float(value), name) for value in whole.get_submodule(name).start_factors("default").sigma]
    best = [name for _, name in sorted(energies, reverse=True)[:7]]
    assert chosen.rank_pattern == {name: best.count(name) for name in TARGETS if name in best}


def test_a_parameter_count_may_carry_a_suffix_and_stays_as_it_was_written() -> None:
    chosen = config("0.5k")
    get_peft_model(models.model(), chosen)
    assert sum(chosen.rank_pattern.values()) == 500 // TERM
    assert chosen.rank["parameters"] == "0.5k"
    with pytest.raises(ValueError, match=r"rank\.parameters is '0.5x', not a count"):
        config("0.5x")


def test_a_floor_keeps_a_term_in_every_target() -> None:
    chosen = config(rank=budget(5 * TERM, floor=1, max=2))
    assert adapted_names(get_peft_model(uneven(), chosen)) == set(TARGETS)
    assert sorted(chosen.rank_pattern.values()) == [1, 1, 1, 2]


def test_ranks_given_by_pattern_are_kept_and_count() -> None:
    chosen = config(6 * TERM, rank_pattern={r"layers\.1\.self_attn\.q_proj": 2})
    get_peft_model(uneven(), chosen)
    assert chosen.rank_pattern[TARGETS[2]] == 2
    assert sum(chosen.rank_pattern[name] for name in TARGETS if name in chosen.rank_pattern) == 6


def test_a_total_that_is_too_small_is_refused_before_anything_is_decomposed(no_decomposition: None) -> None:
    network = models.model()
    with pytest.raises(ValueError, match=rf"the least that works is {4 * TERM}"):
        get_peft_model(network, config(rank=budget(4 * TERM - 1, floor=1)))
    with pytest.raises(ValueError, match=rf"the cheapest term takes {TERM} parameters"):
        get_peft_model(network, config(TERM - 1))
    assert not adapted_names(network)


def test_other_exclusions_stay_beside_those_of_the_budget() -> None:
    for excluded in (["v_proj", "layers.0.self_attn.o_proj"], r".*v_proj|.*layers\.0\.self_attn\.o_proj"):
        chosen = config(exclude_modules=excluded, target_modules=["q_proj", "v_proj", "o_proj"])
        network = get_peft_model(uneven(), chosen)
        assert adapted_names(network) == {TARGETS[0]}
        assert chosen.exclude_modules.endswith(r"model\.layers\.1\.self_attn\.o_proj")


def test_a_module_whose_name_ends_in_an_excluded_ones_is_not_excluded() -> None:
    chosen = config()
    chosen.leave_out(["layers.1.fc"])
    named = config(target_modules=["fc"], exclude_modules=chosen.exclude_modules)
    exists = SokaModel._check_target_module_exists
    assert [bool(exists(named, name)) for name in ("layers.1.fc", "deep.layers.1.fc", "layersx1.fc")] == [False, True, True]


# ---- saving, loading, other ways in


def trained(folder: Path) -> PeftModel:
    network = get_peft_model(uneven(), config(5 * TERM))
    models.train_a_little(network, 0.5)
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_puts_layers_on_the_modules_with_terms_alone_and_decomposes_nothing(
    tmp_path: Path, low_cpu_mem_usage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = models.output(trained(tmp_path))
    monkeypatch.setattr(start, "decompose_weight", models.forbidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # PEFT's, about keys and modules that don't match
        loaded = PeftModel.from_pretrained(uneven(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(models.output(loaded), expected)
    assert adapted_names(loaded) == set(TARGETS[:2])


def test_the_config_survives_save_and_load(tmp_path: Path) -> None:
    network = trained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    live = network.peft_config["default"]
    assert (loaded.rank, loaded.rank_pattern, loaded.exclude_modules) == (live.rank, live.rank_pattern, live.exclude_modules)


def test_training_goes_on_from_a_loaded_adapter(tmp_path: Path) -> None:
    expected = models.output(trained(tmp_path))
    loaded = PeftModel.from_pretrained(uneven(), tmp_path, is_trainable=True)
    assert torch.equal(models.output(loaded), expected)
    assert any(parameter.requires_grad for parameter in loaded.parameters())


def test_merging_adds_to_the_modules_with_terms_alone(tmp_path: Path) -> None:
    network, before = trained(tmp_path), uneven()
    expected = models.output(network)
    merged = network.merge_and_unload()
    torch.testing.assert_close(models.output(merged), expected, rtol=1e-4, atol=1e-5)
    changed = {name for name in TARGETS if not torch.equal(merged.get_submodule(name).weight, before.get_submodule(name).weight)}
    assert changed == set(TARGETS[:2])


def test_a_second_adapter_has_its_own_budget() -> None:
    network = get_peft_model(uneven(), config(3 * TERM))
    before = models.output(network)
    network.add_adapter("other", config(rank=budget(6 * TERM, floor=1)))
    assert adapted_names(network) == set(TARGETS)
    assert sum(network.peft_config["other"].rank_pattern.values()) == 6
    assert torch.equal(models.output(network), before)
    network.set_adapter("other")
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert trainable == 6 * TERM


def test_a_state_dict_says_which_modules_are_adapted() -> None:
    state = get_peft_model_state_dict(get_peft_model(models.model(), config(target_modules=[TARGETS[0]], rank=dict(models.FIXED))))
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        network = inject_adapter_in_model(config(3 * TERM), models.model(), state_dict=plain)
    assert adapted_names(network) == {TARGETS[0]}


@pytest.mark.parametrize("init_weights", [True, False])
def test_init_weights_decides_whether_the_start_is_the_base(init_weights: bool) -> None:
    network = get_peft_model(models.model(), config(init_weights=init_weights))
    assert torch.equal(models.output(network), models.output(models.model())) == init_weights


def test_nothing_is_decomposed_on_the_meta_device_or_with_inference_mode(no_decomposition: None) -> None:
    assert adapted_names(get_peft_model(models.model().to("meta"), config())) == set(TARGETS)
    assert adapted_names(get_peft_model(models.model(), config(inference_mode=True))) == set(TARGETS)


def test_a_searched_shape_and_a_random_start_go_with_a_budget() -> None:
    chosen = config(6 * TERM, shape="search", init="random")
    network = get_peft_model(models.model(), chosen)
    spent = sum(module.start_factors("default").shape.parameters(module.start_factors("default").rank) for module in models.layers(network))
    assert 0 < spent <= 6 * TERM
    assert torch.equal(models.output(network), models.output(models.model()))


def test_a_bfloat16_base_keeps_its_budgeted_factors_in_fp32() -> None:
    network = get_peft_model(models.model("llama", torch.bfloat16), config())
    assert {tensor.dtype for one in models.layers(network) for tensor in (one.soka_U["default"], one.soka_start_U["default"])} == {
        torch.float32
    }


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert", "opt"])
def test_every_architecture_takes_a_budget(kind: str) -> None:
    network = models.model(kind)
    before = models.output(network)
    adapted = get_peft_model(network, models.config(kind, rank=budget(1000)))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert 0 < trained <= 1000
    assert torch.equal(models.output(adapted), before)


# ---- factor files


def written(path: Path) -> None:
    network = get_peft_model(uneven(), config(5 * TERM)).base_model.model
    factors = {name: network.get_submodule(name).start_factors("default") for name in TARGETS[:2]}
    write_factors(path, factors, {name: weight_digest(uneven().get_submodule(name).weight) for name in TARGETS}, base="tiny")


def test_a_factor_file_names_the_modules_without_terms_and_attaching_leaves_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "factors.safetensors"
    written(path)
    assert FactorFile.read(path).without_terms == tuple(TARGETS[2:])
    monkeypatch.setattr(start, "decompose_weight", models.forbidden)
    chosen, base = config(5 * TERM), uneven()
    before = models.output(base)
    network = attach_factors(base, chosen, path)
    assert adapted_names(network) == set(TARGETS[:2])
    assert torch.equal(models.output(network), before)
    assert sum(chosen.rank_pattern.values()) == 5


def test_the_weight_of_a_module_without_terms_must_be_the_files_too(tmp_path: Path) -> None:
    path = tmp_path / "factors.safetensors"
    written(path)
    base = uneven()
    base.get_submodule(TARGETS[3]).weight.data[0, 0] += 1.0
    with pytest.raises(SokaError) as caught:
        attach_factors(base, config(5 * TERM), path)
    assert caught.value.exit_code == ExitCode.RUN
    assert caught.value.why.splitlines()[0].startswith(f"{TARGETS[3]}: sha256")
