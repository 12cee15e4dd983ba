"""Training with theta0 folded into the base weights: the same files, the same bytes after a kill, and it is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from soka_cli.adapter import SokaLayer
from soka_cli.adapter.factors import FactorFile
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_base
from soka_cli.stages.plan import plan
from soka_cli.stages.train import _Training, train
from tests import builders
from tests.stages.test_train_resume import Killed, assert_same, curve, kill_at

FP32 = {"precision": "fp32"}


def context_of(folder: Path, model: Path, /, run: str = "run", *, fold: bool = True, product: str = "auto", **options: Any) -> Any:
    mapping = builders.recipe_mapping(model, builders.gsm8k_file(folder), train={"steps": 6} | options)
    mapping["adapter"] = {"target_modules": ["q_proj", "v_proj"], "rank": {"rule": "fixed", "value": 2}, "product": product}
    if fold:
        mapping["adapter"]["fold_start"] = True
    if "keep" in options:
        mapping["data"]["validation"] = {"fraction": 0.2}
    return builders.stage_context(folder, mapping, run=run)


def tensors(context: Any) -> dict[str, torch.Tensor]:
    return load_file(context.layout.adapter_weights)


@pytest.mark.parametrize("product", ["factored", "auto"])
def test_in_fp32_it_trains_what_training_apart_does(product: str, tmp_path: Path, llama_folder: Path) -> None:
    apart = context_of(tmp_path, llama_folder, "apart", fold=False, product=product, **FP32)
    folded = context_of(tmp_path, llama_folder, "folded", product=product, **FP32)
    for context in (apart, folded):
        train(context)
    expected, found = tensors(apart), tensors(folded)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "start" in name:
            assert torch.equal(found[name], tensor)
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
    losses = [[row["loss"] for row in curve(context)] for context in (folded, apart)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_what_is_saved_as_the_start_is_the_decomposition(tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder)
    train(context)
    saved, start = tensors(context), FactorFile.read(context.layout.factors).modules
    assert start
    for module, factors in start.items():
        for part, tensor in (("U", factors.left), ("V", factors.right), ("sigma", factors.sigma)):
            assert torch.equal(saved[f"base_model.model.{module}.soka_start_{part}"], tensor)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_ends_bit_equal(precision: str, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = context_of(tmp_path, llama_folder, "undisturbed", precision=precision)
    train(undisturbed)
    context = context_of(tmp_path, llama_folder, precision=precision)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    assert train(context).status == "done"
    assert any(message.startswith("Going on from checkpoint-") for message in context.reporter.messages)
    assert_same(context, undisturbed)


def test_every_weight_is_as_it_was_when_the_training_ends(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[PeftModel] = []
    monkeypatch.setattr(_Training, "_save", lambda self, model: (held.append(model), self.result.mkdir(parents=True)))
    context = context_of(tmp_path, llama_folder, keep="best", save_every=2, eval_every=2)
    train(context)
    base = load_base(context.recipe.model, device="cpu", offline=True).state_dict()
    layers = {name: module for name, module in held[0].base_model.model.named_modules() if isinstance(module, SokaLayer)}
    assert len(layers) == 4
    for name, layer in layers.items():
        assert layer.folded is None
        assert torch.equal(layer.base_layer.weight, base[f"{name}.weight"])


def test_it_is_said_and_recorded(tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder, precision="bf16")
    figures = train(context).figures["folded_start"]
    assert figures["layers"] == 4 and figures["bytes"] > 0
    assert json.loads(context.layout.environment("train").read_text())["training"]["folded_start"] == figures
    said = next(message for message in context.reporter.messages if message.startswith("theta0 is folded into 4 base weights"))
    assert "bf16 rounding" in said
    assert figures["bytes"] == plan(context).figures["pristine_weights"]


def test_it_is_an_input_where_it_changes_values(tmp_path: Path, llama_folder: Path) -> None:
    """In fp32 it is a matter of speed; in bf16 the weights are rounded."""
    train(context_of(tmp_path, llama_folder, "exact", fold=False, **FP32))
    assert train(context_of(tmp_path, llama_folder, "exact", **FP32)).status == "already done"
    train(context_of(tmp_path, llama_folder, "rounded", fold=False, precision="bf16"))
    with pytest.raises(SokaError) as caught:
        train(context_of(tmp_path, llama_folder, "rounded", precision="bf16"))
    assert caught.value.exit_code is ExitCode.RUN and "adapter.fold_start: (not set) -> true" in caught.value.why


def test_too_little_main_memory_for_the_weights_as_they_were_is_said_before_the_first_step(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soka_cli.stages.folded_start.available_memory", lambda: 1000)
    with pytest.raises(SokaError, match="main memory are needed") as caught:
        train(context_of(tmp_path, llama_folder))
    assert caught.value.exit_code is ExitCode.RESOURCES
