"""Tiny models of each kind that the adapter's tests put SoKA on, and a way to run and to disturb them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from soka_cli.adapter import SokaConfig, SokaLayer
from tests import builders

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "opt": ["q_proj", "fc1"],
    "gpt2": ["c_attn", "c_proj"],
    "t5": ["q", "v", "wo"],
    "bert": ["query", "value"],
}
FIXED = {"rule": "fixed", "value": 3}


def model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """An untrained model of two layers in evaluation mode."""
    import transformers

    if kind not in ("t5", "bert"):
        return builders.tiny_model(kind).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "t5":
            sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
            made = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=64, **sizes))
        else:
            width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
            made = transformers.BertModel(transformers.BertConfig(vocab_size=64, **width))
    return made.to(dtype).eval()


def output(network: nn.Module) -> Tensor:
    """First output for a fixed input."""
    ids = torch.arange(4, 16)[None]
    both = network.config.model_type == "t5"
    with torch.no_grad():
        return network(input_ids=ids, decoder_input_ids=ids)[0] if both else network(input_ids=ids)[0]


def config(kind: str = "llama", **fields: Any) -> SokaConfig:
    return SokaConfig(**({"target_modules": list(TARGETS[kind]), "rank": dict(FIXED)} | fields))


def layers(network: nn.Module) -> list[SokaLayer]:
    return [module for module in network.modules() if isinstance(module, SokaLayer)]


def train_a_little(network: nn.Module, size: float = 0.1, adapter: str = "default") -> None:
    """Move every factor of an adapter by noise of `size` relative to its own."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers(network):
        for held in (layer.soka_U, layer.soka_V, layer.soka_sigma):
            if adapter in held:
                tensor = held[adapter].data
                tensor += size * tensor.norm() / tensor.numel() ** 0.5 * torch.randn(tensor.shape, generator=generator)


def forbidden(*_: Any, **__: Any) -> Callable[..., Any]:
    raise AssertionError("a weight was decomposed")


def config_targets(network: nn.Module, kind: str = "llama") -> list[str]:
    """Full names of the modules that `config` targets."""
    return [name for name, _ in network.named_modules() if name.rpartition(".")[2] in TARGETS[kind]]


def checkpoint_activations(network: Any) -> None:
    """Switched on as a program does, without what transformers says of its own names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.gradient_checkpointing_enable({"use_reentrant": False})
    network.enable_input_require_grads()
