"""The plan's activations against what autograd really saves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from soka_cli.adapter.methods import peft_config
from soka_cli.recipe.load import load_recipe
from soka_cli.stages.dimensions import of_llama
from soka_cli.stages.memory import estimate, start_memory
from soka_cli.stages.sizes import adapter_sizes, planned_modules

FACTS: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}
ROWS, LENGTH = 2, 128
MOMENTS = ("state1", "state2", "absmax1", "absmax2")


def saved_bytes(model: nn.Module, *, autocast: bool) -> int:
    """Storage that one forward pass keeps for the backward pass, the model's own tensors and the logits left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        return tensor

    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % FACTS["vocab_size"]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(input_ids=ids, labels=ids)
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in alive}
    counted = [tensor for pointer, tensor in storages.items() if pointer not in own and tensor.shape[-1:] != (FACTS["vocab_size"],)]
    return sum(tensor.untyped_storage().nbytes() for tensor in counted)


@pytest.mark.parametrize(
    ("adapter", "precision", "tolerance"),
    [
        ("{method: lora, target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 2}}", "bf16", 0.05),
        ("{target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 1}}", "bf16", 0.05),
        ("{target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 8}}", "bf16", 0.05),
        ("{target_modules: all-linear, rank: {rule: fixed, value: 2}}", "bf16", 0.05),
        ("{target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 8}}", "fp32", 0.2),
        ("{method: full}", "fp32", 0.2),
    ],
)
def test_estimated_activations_are_what_autograd_saves(adapter: str, precision: str, tolerance: float) -> None:
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    overrides = [f"adapter={adapter}", f"train.micro_batch_size={ROWS}", f"data.max_length={LENGTH}", f"train.precision={precision}"]
    recipe = load_recipe("gsm8k", overrides).recipe
    base = of_llama(FACTS, recipe.adapter.target_modules, source="test")
    sizes = adapter_sizes(recipe.adapter, planned_modules(recipe.adapter, base.targets), most=True)
    model: Any = LlamaForCausalLM(LlamaConfig(**FACTS)).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    if recipe.adapter.method != "full":
        model = get_peft_model(model, peft_config(recipe.adapter, seed=0))
    measured = saved_bytes(model.train(), autocast=precision == "bf16")
    assert estimate(recipe, base, sizes).activations == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize("targets", ["[q_proj, v_proj]", "all-linear"])
@pytest.mark.parametrize("init", ["gradient", "early-update"])
def test_estimated_activations_of_a_start_are_what_autograd_saves(init: str, targets: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    overrides = [f"adapter={{target_modules: {targets}, init: {init}}}", f"train.micro_batch_size={ROWS}", f"data.max_length={LENGTH}"]
    recipe = load_recipe("gsm8k", overrides).recipe
    base = of_llama(FACTS, recipe.adapter.target_modules, source="test")
    dtype = torch.bfloat16 if init == "gradient" else torch.float32
    model: Any = LlamaForCausalLM(LlamaConfig(**FACTS)).to(dtype).requires_grad_(False).eval()
    for module in base.targets:
        model.get_submodule(module.name).weight.requires_grad_(True)
    estimated = start_memory(recipe, base)
    assert estimated is not None
    assert estimated.activations == pytest.approx(saved_bytes(model, autocast=False), rel=0.25)


@pytest.mark.parametrize(
    "adapter",
    [
        "{method: lora, target_modules: all-linear, rank: {rule: fixed, value: 32}}",
        "{target_modules: all-linear, rank: {rule: fixed, value: 60}}",
        "{method: full}",
    ],
)
def test_the_planned_moments_are_the_bytes_that_the_8_bit_optimizer_holds(adapter: str) -> None:
    optimizers = pytest.importorskip("bitsandbytes").optim
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    recipe = load_recipe("gsm8k", [f"adapter={adapter}", "train.optimizer=adamw-8bit"]).recipe
    base = of_llama(FACTS, recipe.adapter.target_modules, source="test")
    sizes = adapter_sizes(recipe.adapter, planned_modules(recipe.adapter, base.targets), most=True)
    model: Any = LlamaForCausalLM(LlamaConfig(**FACTS))
    if recipe.adapter.method != "full":
        model = get_peft_model(model, peft_config(recipe.adapter, seed=0))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizers.AdamW(trained, optim_bits=8)
    optimizer.step()
    states = [{name: part for name, part in state.items() if name in MOMENTS} for state in optimizer.state.values()]
    kinds = {state["state1"].dtype for state in states}
    assert kinds == {torch.uint8, torch.float32}
    held = sum(part.nbytes for state in states for part in state.values())
    assert estimate(recipe, base, sizes).optimizer == pytest.approx(held, rel=1e-3 if recipe.adapter.method == "full" else 0)


def test_the_8_bit_optimizer_changes_no_other_part_of_the_plan() -> None:
    whole, packed = (
        estimate(recipe, base, adapter_sizes(recipe.adapter, planned_modules(recipe.adapter, base.targets), most=True))
        for recipe in (load_recipe("gsm8k", [f"train.optimizer={name}"]).recipe for name in ("adamw", "adamw-8bit"))
        for base in (of_llama(FACTS | {"hidden_size": 4096, "num_attention_heads": 32}, recipe.adapter.target_modules, source="test"),)
    )
    assert replace(packed, optimizer=whole.optimizer) == whole and packed.optimizer < 0.3 * whole.optimizer
