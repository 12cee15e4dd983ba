"""An adapter read from its files alone adds what PEFT makes of it; whatever is not plain is left to PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from soka_cli.adapter import SokaConfig
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import skeleton, targets
from soka_cli.models.weights import stored_weights
from soka_cli.stages.adapter_file import PLAIN_KINDS, AdapterFile
from soka_cli.stages.deltas import Deltas
from soka_cli.stages.updates import KronUpdate, LowRankUpdate
from tests.builders import tiny_model, tiny_model_folder

KINDS = ["q_proj", "v_proj", "down_proj"]
CONFIGS: dict[str, Any] = {
    "soka": lambda: SokaConfig(target_modules=KINDS, rank={"rule": "fixed", "value": 2}),
    "lora": lambda: LoraConfig(target_modules=KINDS, r=3, lora_alpha=7),
    "rslora": lambda: LoraConfig(target_modules=KINDS, r=3, lora_alpha=7, use_rslora=True),
    "lokr": lambda: LoKrConfig(target_modules=KINDS, r=64, alpha=24),
}
UNUSUAL: dict[str, Any] = {
    "dora": lambda: LoraConfig(target_modules=KINDS, use_dora=True),
    "rank pattern": lambda: LoraConfig(target_modules=KINDS, rank_pattern={"q_proj": 2}),
    "bias": lambda: LoraConfig(target_modules=KINDS, bias="lora_only"),
    "whole modules": lambda: LoraConfig(target_modules=KINDS, modules_to_save=["lm_head"]),
    "some layers": lambda: LoraConfig(target_modules=KINDS, layers_to_transform=[0]),
    "output layer": lambda: LoraConfig(target_modules=["lm_head"]),
    "lokr with factored factors": lambda: LoKrConfig(target_modules=KINDS, r=2),
}


def adapter(folder: Path, config: Any, base: Path) -> Path:
    """An adapter moved away from its start, saved."""
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_added_is_what_peft_adds_bit_for_bit(tmp_path: Path, name: str) -> None:
    base = tiny_model_folder(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", CONFIGS[name](), base)
    found, peft = AdapterFile.of(folder, Checkpoint(base)), Deltas(folder, base)
    assert found is not None and sorted(found.modules) == sorted(peft.modules)
    for module in found.modules:
        update, expected = found.update(module), peft.delta(module)
        assert expected.any() and update.size == tuple(expected.shape)
        assert torch.equal(update.rows(0, update.size[0]), expected)


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_option_that_says_more_than_the_factors_is_left_to_peft(tmp_path: Path, name: str) -> None:
    base = tiny_model_folder(tmp_path / "base")
    assert AdapterFile.of(adapter(tmp_path / "adapter", UNUSUAL[name](), base), Checkpoint(base)) is None


def test_an_option_of_a_later_peft_is_left_to_peft(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", CONFIGS["lora"](), base)
    config = json.loads((folder / "adapter_config.json").read_text())
    for value, plain in ((None, True), ({}, True), (True, False), (0.5, False)):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"an_option_of_tomorrow": value}))
        assert (AdapterFile.of(folder, Checkpoint(base)) is not None) is plain


def test_a_base_that_turns_its_weights_round_is_left_to_peft(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base", "gpt2")
    folder = adapter(tmp_path / "adapter", LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True), base)
    assert AdapterFile.of(folder, Checkpoint(base)) is None


@pytest.mark.parametrize("name", ["soka", "lora", "lokr"])
def test_a_module_left_out_is_not_a_module(tmp_path: Path, name: str) -> None:
    base = tiny_model_folder(tmp_path / "base")
    config = CONFIGS[name]()
    config.exclude_modules = r"model\.layers\.0\..*"
    found = AdapterFile.of(adapter(tmp_path / "adapter", config, base), Checkpoint(base))
    assert found is not None and {module.split(".")[2] for module in found.modules} == {"1"}


@pytest.mark.parametrize("kind", sorted(PLAIN_KINDS))
def test_the_plain_kinds_store_each_linear_weight_under_its_own_name(tmp_path: Path, kind: str) -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=64, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, **small)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    model, base = skeleton(tmp_path), Checkpoint(tmp_path)
    chosen = targets(model, "all-linear")
    assert len(chosen) >= 4
    for weight in stored_weights(model, base, list(chosen.values())).values():
        assert weight.is_plain and not weight.target.transposed and weight.target.tied_to is None
        assert weight.tensors == (f"{weight.target.name}.weight",)
        assert type(model.get_submodule(weight.target.name)) is nn.Linear


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (1, 2, 12, 5), (12, 10, 1, 1), (4, 1, 3, 10)])
def test_any_rows_of_an_update_are_those_of_the_whole(shape: tuple[int, int, int, int]) -> None:
    m, n, p, q = shape
    torch.manual_seed(0)
    sums = tuple((torch.randn(3, m, n), torch.randn(3, p, q), torch.rand(3)) for _ in range(2))
    low = LowRankUpdate(torch.randn(12, 3), torch.randn(3, 10), 0.7)
    for update in (KronUpdate(sums), KronUpdate(sums[:1], 0.7), low):
        whole = update.rows(0, 12)
        assert whole.shape == update.size == (12, 10)
        for first in range(12):
            for last in range(first + 1, 13):
                torch.testing.assert_close(update.rows(first, last), whole[first:last], rtol=1e-6, atol=1e-6)


def test_a_tied_table_keeps_an_adapter_from_being_plain(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", LoraConfig(target_modules=["embed_tokens", "q_proj"]), tmp_path / "base")
    assert AdapterFile.of(folder, Checkpoint(tmp_path / "base")) is None
