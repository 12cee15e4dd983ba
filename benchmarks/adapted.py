"""Layers and small Llamas under each method, alike in all else, for the benchmarks of speed."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from soka_cli.adapter import SokaConfig

GAIN = 1.01  # present terms over the start's: as after some training, and no plan is spared by zeros


def config(method: str, targets: Sequence[str], rank: int, product: str = "auto") -> PeftConfig:
    """lora, lokr (full factors of about the same parameters) or soka, without dropout."""
    if method == "lora":
        return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
    if method == "lokr":
        return LoKrConfig(r=100_000, alpha=100_000, target_modules=list(targets))  # a rank no factor reaches: both are full
    return SokaConfig(target_modules=list(targets), rank={"rule": "fixed", "value": rank}, init="random", product=product)


def layer(outputs: int, inputs: int, how: PeftConfig | None) -> nn.Module:
    """One frozen linear layer, adapted."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(inputs, outputs, bias=False)).requires_grad_(False)
    return base if how is None else moved(get_peft_model(base, how))


def llama(width: int, blocks: int, how: PeftConfig | None) -> nn.Module:
    """A Llama with a vocabulary of 256, so that its blocks are what costs; None trains it whole."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_attention_heads": 16}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=blocks, max_position_embeddings=4096, **sizes))
    base.config.use_cache = False
    return base if how is None else moved(get_peft_model(base, how))


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in trained(model):
            parameter *= GAIN
    return model


def trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
