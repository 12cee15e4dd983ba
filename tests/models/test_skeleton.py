"""Names, sizes and stored tensors of a model that is not there, against PEFT and transformers themselves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import skeleton, targets, ties
from soka_cli.models.weights import stored_weights
from tests.builders import tiny_model


def encoder(kind: str) -> Any:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
    if kind == "bert":
        return BertForMaskedLM(BertConfig(**small))
    if kind == "albert":
        return AlbertForMaskedLM(AlbertConfig(**small, embedding_size=16))
    if kind == "t5":
        return T5ForConditionalGeneration(T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**small, num_key_value_heads=2, num_local_experts=2))
    return tiny_model(kind)


ALL = ["llama", "qwen2", "gpt2", "opt", "phi3", "hrm_text", "bert", "albert", "t5", "mixtral"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    torch.manual_seed(0)
    made = {}
    for kind in ALL:
        model, folder = encoder(kind), tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        made[kind] = (model, folder)
    return made


CHOICES: list[tuple[str, Any]] = [
    *((kind, "all-linear") for kind in ALL if kind != "mixtral"),  # there PEFT adds experts, for LoRA alone
    ("llama", ["q_proj", "v_proj"]),
    ("llama", ["layers.1.self_attn.q_proj"]),
    ("llama", ["model.layers.0.mlp.up_proj", "o_proj"]),
    ("llama", r".*\.1\.mlp\.(up|down)_proj"),
    ("llama", ["lm_head"]),
    ("gpt2", ["c_attn", "c_fc"]),
    ("phi3", ["qkv_proj"]),
    ("t5", ["q", "v"]),
    ("bert", ["query", "value"]),
    ("mixtral", ["q_proj"]),
]


@pytest.mark.parametrize(("kind", "chosen"), CHOICES)
def test_targets_are_those_that_peft_adapts(kind: str, chosen: Any, models: dict[str, tuple[Any, Path]]) -> None:
    model, folder = models[kind]
    adapted = inject_adapter_in_model(LoraConfig(target_modules=chosen), copy.deepcopy(model))
    expected = {name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
    assert set(targets(skeleton(folder), chosen)) == expected


@pytest.mark.parametrize("kind", ALL)
def test_every_target_is_found_in_the_files_with_its_own_values(kind: str, models: dict[str, tuple[Any, Path]]) -> None:
    model, folder = models[kind]
    empty, checkpoint = skeleton(folder), Checkpoint(folder)
    found = targets(empty, "all-linear")
    weights = stored_weights(empty, checkpoint, list(found.values()))
    for name, target in found.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weights[name].read(), weight)
        out_features, in_features = reversed(weight.shape) if target.transposed else weight.shape
        assert (target.out_features, target.in_features) == (out_features, in_features)


def test_the_skeleton_holds_no_weights(models: dict[str, tuple[Any, Path]]) -> None:
    assert all(parameter.is_meta for parameter in skeleton(models["llama"][1]).parameters())


def test_only_gpt2_stores_its_weights_transposed(models: dict[str, tuple[Any, Path]]) -> None:
    transposed = {kind for kind in ALL if any(one.transposed for one in targets(skeleton(models[kind][1]), "all-linear").values())}
    assert transposed == {"gpt2"}


@pytest.mark.parametrize(("kind", "prefix"), [("llama", "model."), ("gpt2", "transformer."), ("bert", "bert.")])
def test_a_checkpoint_may_lack_the_models_prefix(kind: str, prefix: str, models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    model, folder = models[kind]
    bare = {name.removeprefix(prefix): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    assert any(name.startswith(prefix) for name in load_file(folder / "model.safetensors"))
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    empty, checkpoint = skeleton(tmp_path), Checkpoint(tmp_path)
    for name, stored in stored_weights(empty, checkpoint, list(targets(empty, "all-linear").values())).items():
        assert torch.equal(stored.read(), model.get_submodule(name).weight)


def test_a_tied_head_says_what_it_shares_and_is_read_from_there(models: dict[str, tuple[Any, Path]]) -> None:
    model, folder = models["gpt2"]
    empty, checkpoint = skeleton(folder), Checkpoint(folder)
    head = targets(empty, ["lm_head"])["lm_head"]
    assert ties(empty) == {"lm_head.weight": "transformer.wte.weight"}
    assert head.tied_to == "transformer.wte.weight"
    assert torch.equal(stored_weights(empty, checkpoint, [head])["lm_head"].read(), model.lm_head.weight)


def refusal(exit_code: ExitCode, call: Any, *arguments: Any) -> SokaError:
    with pytest.raises(SokaError) as caught:
        call(*arguments)
    assert caught.value.exit_code is exit_code
    return caught.value


def test_no_match_lists_the_kinds_that_are_there(models: dict[str, tuple[Any, Path]]) -> None:
    error = refusal(ExitCode.USAGE, targets, skeleton(models["llama"][1]), ["query"])
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head" in error.why


@pytest.mark.parametrize("chosen", [["embed_tokens"], ["self_attn"], ["input_layernorm"]])
def test_a_match_that_is_no_linear_layer_is_refused(chosen: list[str], models: dict[str, tuple[Any, Path]]) -> None:
    assert "no linear layers" in refusal(ExitCode.USAGE, targets, skeleton(models["llama"][1]), chosen).what


def test_a_missing_tensor_is_named(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    folder = models["llama"][1]
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    empty = skeleton(tmp_path)
    error = refusal(ExitCode.ENVIRONMENT, stored_weights, empty, Checkpoint(tmp_path), list(targets(empty, "all-linear").values()))
    assert "model.layers.1.mlp.up_proj.weight" in error.what


def test_a_tensor_of_another_size_is_named(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    folder = models["llama"][1]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(7, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    empty = skeleton(tmp_path)
    error = refusal(ExitCode.ENVIRONMENT, stored_weights, empty, Checkpoint(tmp_path), list(targets(empty, "all-linear").values()))
    assert "(7, 32)" in error.what and "(48, 32)" in error.what


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model_type": "nothing-of-the-kind"}', '{"model_type": "llama", "hidden_size": "x"}'])
def test_a_config_that_cannot_be_used_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(ExitCode.ENVIRONMENT, skeleton, tmp_path).where
