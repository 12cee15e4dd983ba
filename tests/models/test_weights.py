"""Weights as transformers reads them, from wherever a checkpoint keeps them, and the way back."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import weights
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import skeleton, targets
from soka_cli.models.weights import StoredWeight, stored_weights
from tests.builders import tiny_model


def found(folder: Path, chosen: Any = "all-linear") -> dict[str, StoredWeight]:
    model = skeleton(folder)
    return stored_weights(model, Checkpoint(folder), list(targets(model, chosen).values()))


def refusal(folder: Path, chosen: Any = "all-linear") -> SokaError:
    with pytest.raises(SokaError) as caught:
        for weight in found(folder, chosen).values():
            weight.read()
    assert caught.value.exit_code is ExitCode.ENVIRONMENT and caught.value.hint
    return caught.value


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """q, k, v and gate lie in one tensor, gate and up in another; the model has them apart."""
    tiny_model("hrm_text").save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tensor]:
    """gate_up_proj of the model lies in two tensors; the folder, and the whole weight of the first layer."""
    folder = tmp_path / "pieces"
    tiny_model("phi3").save_pretrained(folder)
    tensors, split = load_file(folder / "model.safetensors"), {}
    for name, tensor in tensors.items():
        halves = dict(zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True)) if "gate_up_proj" in name else {"gate_up_proj": tensor}
        split |= {name.replace("gate_up_proj", one): half.clone() for one, half in halves.items()}
    save_file(split, folder / "model.safetensors", metadata={"format": "pt"})
    rule = WeightConverter(["mlp.gate_proj.weight", "mlp.up_proj.weight"], "mlp.gate_up_proj.weight", [Concatenate(dim=0)])
    monkeypatch.setattr(weights, "get_model_conversion_mapping", lambda model: [rule])
    return folder, tensors["model.layers.0.mlp.gate_up_proj.weight"]


def test_a_weight_in_a_fused_tensor_is_its_own_part(fused: Path) -> None:
    model, stored = tiny_model("hrm_text"), found(fused)
    assert stored["model.H_module.layers.0.self_attn.v_proj"].tensors == ("model.H_module.layers.0.attn.gqkv_proj.weight",)
    for name, weight in stored.items():
        assert torch.equal(weight.read(), model.get_submodule(name).weight)


def test_a_weight_in_pieces_is_put_together(pieces: tuple[Path, Tensor]) -> None:
    folder, whole = pieces
    weight = found(folder, ["gate_up_proj"])["model.layers.0.mlp.gate_up_proj"]
    assert weight.tensors == ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight")
    assert torch.equal(weight.read(), whole)


def goes_there_and_back(weight: StoredWeight) -> bool:
    stored = {name: torch.randn(weight.checkpoint.shape(name)) for name in weight.tensors}
    again = weight.join(weight.split(stored))
    return not weight.unwritable and again.keys() == stored.keys() and all(torch.equal(again[name], one) for name, one in stored.items())


def test_what_was_split_is_joined_again(fused: Path) -> None:
    assert goes_there_and_back(found(fused, ["v_proj"])["model.H_module.layers.0.self_attn.v_proj"])


def test_what_was_joined_is_split_again(pieces: tuple[Path, Tensor]) -> None:
    assert goes_there_and_back(found(pieces[0], ["gate_up_proj"])["model.layers.0.mlp.gate_up_proj"])


class Halved(ConversionOps):
    """A rule that loses something on its way, and claims to be its own inverse."""

    def convert(self, input_dict: dict[str, Any], source_patterns: Any, target_patterns: Any, **kwargs: Any) -> dict[str, Any]:
        (held,) = input_dict.values()
        return {target_patterns[0]: (held[0] if isinstance(held, list) else held) // 2}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def test_a_rule_without_a_way_back_is_no_place_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path)
    rule = WeightConverter("self_attn.q_proj.weight", "self_attn.q_proj.weight", [Halved()])
    monkeypatch.setattr(weights, "get_model_conversion_mapping", lambda model: [rule])
    weight = found(tmp_path, ["q_proj"])["model.layers.0.self_attn.q_proj"]
    assert "no way back" in weight.unwritable


def test_a_fused_tensor_of_another_size_is_named(fused: Path) -> None:
    tensors = load_file(fused / "model.safetensors")
    name = "model.H_module.layers.0.attn.gqkv_proj.weight"
    tensors[name] = tensors[name][:64].clone()
    save_file(tensors, fused / "model.safetensors", metadata={"format": "pt"})
    error = refusal(fused, ["v_proj"])
    assert name in error.what and "(16, 32)" in error.what


def test_the_first_value_that_is_not_finite_is_named_where_it_is_stored(fused: Path) -> None:
    tensors = load_file(fused / "model.safetensors")
    name = "model.H_module.layers.0.attn.gqkv_proj.weight"
    tensors[name][100, 3:] = float("inf")
    save_file(tensors, fused / "model.safetensors", metadata={"format": "pt"})
    error = refusal(fused, ["v_proj"])
    assert name in error.where and error.why == "inf at index (100, 3)"


def quantised(folder: Path, kind: str) -> Path:
    """A tiny model of width 64, packed and saved by transformers and bitsandbytes; its head is left as it was."""
    pytest.importorskip("bitsandbytes", reason="the quant extra is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    how: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": kind.partition(" ")[0]}
    how |= {"bnb_4bit_use_double_quant": "double" in kind, "bnb_4bit_quant_storage": "bfloat16" if "stored" in kind else "uint8"}
    if "int8" in kind:
        how = {"load_in_8bit": True}
    torch.manual_seed(0)
    if "gpt2" in kind:
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4))
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes, tie_word_embeddings=False))
    model.save_pretrained(folder / "float")
    options = {"quantization_config": BitsAndBytesConfig(**how), "device_map": {"": "cpu"}, "dtype": torch.float32}
    AutoModelForCausalLM.from_pretrained(folder / "float", **options).save_pretrained(folder / "packed")
    return folder / "packed"


@pytest.mark.parametrize("kind", ["nf4", "nf4 double", "nf4 stored as bfloat16", "fp4", "int8", "nf4 gpt2", "int8 gpt2"])
def test_a_packed_weight_is_the_one_that_the_layer_computes_with(kind: str, tmp_path: Path) -> None:
    folder = quantised(tmp_path, kind)
    from peft.utils import resolve_quantization_backend
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    stored = found(folder)
    for name, weight in stored.items():
        layer = loaded.get_submodule(name)
        values = resolve_quantization_backend(layer).get_base_weight(layer)
        assert torch.equal(weight.matrix(weight.read()), values)
        assert values.shape == (weight.target.out_features, weight.target.in_features)
        assert "packed" in weight.unwritable
    assert {weight.stored_as for weight in stored.values()} == {kind.partition(" ")[0]}


def test_a_weight_that_was_left_unpacked_is_read_as_it_is(tmp_path: Path) -> None:
    head = found(quantised(tmp_path, "nf4"), ["lm_head"])["lm_head"]
    assert head.stored_as == "float32" and not head.unwritable
    assert torch.equal(head.read(), load_file(tmp_path / "float" / "model.safetensors")["lm_head.weight"])


def test_without_bitsandbytes_a_packed_base_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quantised(tmp_path, "nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "soka-cli[quant]" in refusal(folder).hint


def test_a_packed_weight_whose_statistics_are_missing_is_named(tmp_path: Path) -> None:
    folder = quantised(tmp_path, "nf4")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight.absmax"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    error = refusal(folder, ["down_proj"])
    assert "model.layers.0.mlp.down_proj" in error.what and "absmax" in error.why


def test_another_way_of_packing_is_refused_by_its_name(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    packed = {name.replace("proj.weight", "proj.qweight"): tensor for name, tensor in tensors.items()}
    save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "gptq" in refusal(tmp_path).what
