"""SoKA inside PEFT and transformers: registration, config, saving and loading, other ways in."""

import copy
import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file

from soka_cli.adapter import SokaConfig, SokaModel, register, start
from tests.adapter import models


@pytest.fixture
def trained(tmp_path: Path) -> tuple[PeftModel, Path]:
    """A trained adapter on the tiny Llama, and the folder it is saved in."""
    adapted = get_peft_model(models.model(), models.config())
    models.train_a_little(adapted, 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    return adapted, tmp_path / "adapter"


@pytest.fixture
def no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "decompose_weight", models.forbidden)


# ---- registration


def test_registering_again_changes_nothing() -> None:
    register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SOKA"] is SokaConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["SOKA"] is SokaModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["SOKA"] == "soka_"
    assert [name for name in PEFT_TYPE_TO_CONFIG_MAPPING if name == "SOKA"] == ["SOKA"]


def test_the_type_behaves_like_a_member_of_peft_s_enum() -> None:
    peft_type = SokaConfig().peft_type
    assert (peft_type, peft_type.value, peft_type.name) == ("SOKA", "SOKA", "SOKA")
    assert json.dumps(peft_type) == '"SOKA"'
    assert copy.deepcopy(peft_type) == "SOKA"


def test_another_method_of_that_name_is_replaced_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, "SOKA", PeftConfig)
    with pytest.warns(UserWarning, match="PEFT has a method SOKA of its own"):
        register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SOKA"] is SokaConfig


def test_a_member_that_peft_s_enum_gets_one_day_is_used() -> None:
    class Future(StrEnum):  # what peft.PeftType would then look like
        LORA = "LORA"
        SOKA = "SOKA"

    from soka_cli.adapter.config import soka_type

    assert soka_type(Future) is Future.SOKA


def test_without_our_package_peft_names_the_method_it_lacks(trained: tuple[PeftModel, Path]) -> None:
    code = "import sys, peft; peft.PeftConfig.from_pretrained(sys.argv[1])"
    finished = subprocess.run([sys.executable, "-c", code, str(trained[1])], capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr.strip().endswith("KeyError: 'SOKA'")


# ---- config


def test_a_config_survives_save_and_load_unchanged(tmp_path: Path) -> None:
    config = SokaConfig(
        target_modules=["q_proj"],
        exclude_modules=["lm_head"],
        layers_to_transform=[0, 1],
        modules_to_save=["lm_head"],
        shape={"block": 8},
        shape_pattern={"v_proj": {"m": 2, "n": 2}},
        rank={"rule": "min", "tau": 0.8, "max": 3},
        rank_pattern={"q_proj": 2},
        seed=7,
        task_type="CAUSAL_LM",
    )
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is SokaConfig
    assert loaded == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": {"rule": "median"}}, "rank.rule 'median' is none of"),
        ({"rank": {"rule": "fixed"}}, "needs a value"),
        ({"rank": {"tau": 0.9, "tua": 1}}, "rank has no tua"),
        ({"init": "zeros"}, "init is 'zeros'; there are: weight, random, gradient, early-update"),
        ({"shape": "square"}, "shape 'square' is none of"),
        ({"shape_pattern": {"q_proj": {"m": 2}}}, "is none of"),
        ({"target_modules": "q.*", "layers_to_transform": [0]}, "`layers_to_transform` cannot be used"),
        ({"target_modules": ["q"], "layers_pattern": "layers"}, "`layers_to_transform` must also be specified"),
    ],
)
def test_a_wrong_config_is_refused_when_it_is_made(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SokaConfig(**fields)


def test_chosen_ranks_and_shapes_are_written_into_the_live_config_under_full_names() -> None:
    config = SokaConfig(target_modules=["q_proj", "v_proj"], rank={"rule": "min", "max": 4})
    adapted = get_peft_model(models.model(), config)
    assert adapted.peft_config["default"] is config
    names = {f"model.layers.{index}.self_attn.{kind}_proj" for index in range(2) for kind in "qv"}
    assert config.rank_pattern.keys() == config.shape_pattern.keys() == names
    for name in names:
        found = adapted.base_model.model.get_submodule(name).factors("default")
        assert (found.rank, {"m": found.shape.m, "n": found.shape.n}) == (config.rank_pattern[name], config.shape_pattern[name])


def test_a_full_name_is_no_pattern_for_a_longer_one() -> None:
    config = SokaConfig(rank_pattern={"fc": 1, "layers.1.fc": 2, "deep.layers.1.fc": 3})
    assert [config.rank_of(name) for name in ("deep.layers.1.fc", "layers.1.fc", "layers.0.fc", "q")] == [3, 2, 1, None]


def test_rank_depends_on_the_weight_alone() -> None:
    """Another adapter name, another order of modules and another seed choose the same ranks."""
    rule = {"rule": "min", "tau": 0.9, "max": 8}
    configs = [SokaConfig(target_modules="all-linear", rank=rule, seed=seed) for seed in (0, 1)]
    get_peft_model(models.model(), configs[0])
    get_peft_model(models.model(), configs[1], adapter_name="other")
    assert configs[0].rank_pattern == configs[1].rank_pattern
    assert len(set(configs[0].rank_pattern.values())) > 1


# ---- when nothing is decomposed


@pytest.mark.usefixtures("no_decomposition")
@pytest.mark.parametrize("init_weights", [True, False])
def test_nothing_is_decomposed_on_the_meta_device(init_weights: bool) -> None:
    with torch.device("meta"):
        network = models.builders.tiny_model()
    adapted = get_peft_model(network, models.config(init_weights=init_weights))
    assert all(found.soka_U["default"].is_meta for found in models.layers(adapted))


@pytest.mark.usefixtures("no_decomposition")
def test_nothing_is_decomposed_with_inference_mode_and_the_function_is_the_base_s() -> None:
    base = models.output(models.model())
    adapted = get_peft_model(models.model(), models.config(inference_mode=True))
    assert torch.equal(models.output(adapted), base)
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_restores_the_function_without_decomposing(
    trained: tuple[PeftModel, Path], monkeypatch: pytest.MonkeyPatch, low_cpu_mem_usage: bool
) -> None:
    adapted, folder = trained
    monkeypatch.setattr(start, "decompose_weight", models.forbidden)
    loaded = PeftModel.from_pretrained(models.model(), folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(models.output(loaded), models.output(adapted))


# ---- saving and loading


def test_the_saved_file_holds_theta_and_theta0_in_fp32_and_nothing_of_the_base(trained: tuple[PeftModel, Path]) -> None:
    adapted, folder = trained
    tensors = load_file(folder / "adapter_model.safetensors")
    parts = [f"soka_{start}{part}" for start in ("", "start_") for part in ("U", "V", "sigma")]
    expected = {f"base_model.model.{name}.{part}" for name in adapted.peft_config["default"].rank_pattern for part in parts}
    assert tensors.keys() == expected == get_peft_model_state_dict(adapted).keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_bfloat16_base_gets_its_adapter_back_in_fp32(tmp_path: Path) -> None:
    adapted = get_peft_model(models.model("llama", torch.bfloat16), models.config())
    models.train_a_little(adapted, 0.5)
    adapted.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(models.model("llama", torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        state, again = get_peft_model_state_dict(adapted), get_peft_model_state_dict(loaded)
        assert all(torch.equal(state[name], again[name]) and again[name].dtype == torch.float32 for name in state)


def test_training_goes_on_from_a_loaded_adapter(trained: tuple[PeftModel, Path]) -> None:
    adapted, folder = trained
    loaded = PeftModel.from_pretrained(models.model(), folder, is_trainable=True)
    assert torch.equal(models.output(loaded), models.output(adapted))
    assert any(parameter.requires_grad for parameter in loaded.parameters())


def test_several_adapters_are_saved_and_loaded_apart(tmp_path: Path) -> None:
    adapted = get_peft_model(models.model(), models.config())
    adapted.add_adapter("other", models.config(rank={"rule": "fixed", "value": 1}, shape={"m": 2, "n": 2}))
    models.train_a_little(adapted, 0.5)
    models.train_a_little(adapted, 0.3, "other")
    outputs = {}
    for name in ("default", "other"):
        adapted.set_adapter(name)
        outputs[name] = models.output(adapted)
    assert not torch.equal(outputs["default"], outputs["other"])
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(models.model(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    for name, expected in outputs.items():
        loaded.set_adapter(name)
        assert torch.equal(models.output(loaded), expected)


def test_modules_to_save_travel_with_the_adapter(tmp_path: Path) -> None:
    adapted = get_peft_model(models.model(), models.config(modules_to_save=["lm_head"]))
    adapted.base_model.model.lm_head.modules_to_save["default"].weight.data += 1.0
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(models.model(), tmp_path)
    assert torch.equal(models.output(loaded), models.output(adapted))


def test_a_state_dict_goes_through_inject_adapter_in_model(trained: tuple[PeftModel, Path]) -> None:
    adapted, _ = trained
    network = inject_adapter_in_model(models.config(), models.model())
    result = set_peft_model_state_dict(network, get_peft_model_state_dict(adapted))
    assert not result.unexpected_keys
    assert torch.equal(models.output(network), models.output(adapted))


def test_the_keys_of_a_state_dict_say_which_modules_are_adapted() -> None:
    source = inject_adapter_in_model(models.config(target_modules=["q_proj"]), models.model())
    models.train_a_little(source, 0.5)
    state = get_peft_model_state_dict(source)
    with pytest.warns(RuntimeWarning, match="an inconsistency was discovered"):
        network = inject_adapter_in_model(models.config(target_modules=["v_proj"]), models.model(), state_dict=state)
    set_peft_model_state_dict(network, state)
    assert torch.equal(models.output(network), models.output(source))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_load_adapter_gives_the_same_function(tmp_path: Path, dtype: torch.dtype) -> None:
    adapted = get_peft_model(models.model("llama", dtype), models.config())
    models.train_a_little(adapted, 0.5)
    adapted.save_pretrained(tmp_path)
    network = models.model("llama", dtype)
    network.load_adapter(str(tmp_path))
    assert torch.equal(models.output(network), models.output(adapted))
    network.disable_adapters()
    assert torch.equal(models.output(network), models.output(models.model("llama", dtype)))


def test_auto_peft_model_finds_base_and_adapter(tmp_path: Path) -> None:
    models.builders.tiny_model_folder(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), models.config(task_type="CAUSAL_LM"))
    models.train_a_little(adapted, 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(models.output(loaded), models.output(adapted))


def test_deleting_and_unloading_leave_the_base_as_it_was() -> None:
    base = models.output(models.model())
    adapted = get_peft_model(models.model(), models.config())
    adapted.add_adapter("other", models.config())
    models.train_a_little(adapted, 0.5)
    adapted.delete_adapter("default")
    assert not any("default" in name for name in adapted.state_dict())
    assert torch.equal(models.output(adapted.unload()), base)


# ---- training


def test_only_the_adapter_is_trained_and_the_start_stays() -> None:
    adapted = get_peft_model(models.model(), models.config())
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(4, 36).reshape(2, 16)
    losses = []
    for _ in range(5):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = {name for name in before if any(f".{part}." in name for part in ("soka_U", "soka_V", "soka_sigma"))}
    assert changed == trained
    assert losses[-1] < losses[0]


def test_the_number_of_trained_parameters_is_r_times_mn_plus_pq_plus_one() -> None:
    adapted = get_peft_model(models.model(), SokaConfig(target_modules=["q_proj"], shape={"m": 4, "n": 8}, rank=models.FIXED))
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert trainable == 2 * 3 * (4 * 8 + 8 * 4 + 1)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        adapted = get_peft_model(models.model(), models.config(init_weights=True)).train()
        models.train_a_little(adapted, 0.1)
        if checkpointing:
            adapted.enable_input_require_grads()
            adapted.gradient_checkpointing_enable()
        ids = torch.arange(4, 20)[None]
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


# ---- a base that does not lie in memory as it is


def test_an_offloaded_base_is_decomposed_and_runs(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    whole = get_peft_model(models.model(), models.config(product="factored"))
    offloaded = models.model()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert offloaded.model.layers[0].self_attn.q_proj.weight.is_meta
    adapted = get_peft_model(offloaded, models.config(product="factored"))
    models.train_a_little(whole, 0.5)
    models.train_a_little(adapted, 0.5)
    assert torch.equal(models.output(adapted), models.output(whole))
