"""What an adapter adds to each weight, from its files alone: PEFT's own code on a base without weights."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import soka_cli.adapter  # noqa: F401 - registers SoKA with PEFT
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import refuse_tied, skeleton, target
from soka_cli.models.weights import StoredWeight, stored_weights
from soka_cli.stages.adapter_file import CONFIG, WEIGHTS
from soka_cli.stages.updates import DenseUpdate, LowRankUpdate, Update

ADAPTER = "default"
BEYOND_MATRICES = ("modules_to_save", "use_dora", "lora_bias", "trainable_token_indices", "target_parameters")


class Deltas:
    """The adapter of a folder as one matrix a module.

    The base's parameters stay on the meta device, so memory is the adapter's, plus one matrix while it is asked for.

    Raises:
        SokaError: exit 5, where the folder is damaged, does not fit the base, or trains more than matrices.
    """

    def __init__(self, folder: Path, base: Path, *, trust: bool = False) -> None:
        config = _read_config(folder)
        tensors = _read_tensors(folder / WEIGHTS)
        try:
            model = get_peft_model(skeleton(base, trust=trust), config, adapter_name=ADAPTER, low_cpu_mem_usage=True)
            layers = {name: module for name, module in model.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)}
            for layer in layers.values():
                layer._move_adapter_to_device_of_base_layer = _stay  # to meta, where PEFT would put what it has just loaded
            result = set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER, low_cpu_mem_usage=True)
        except (ValueError, RuntimeError, KeyError) as error:
            raise _misfit(folder, [str(error).strip()[:400]]) from None
        self._layers: dict[str, Any] = layers
        own = [*model.base_model.model.named_parameters(), *model.base_model.model.named_buffers()]
        empty = [name for name, tensor in own if tensor.is_meta and f".{ADAPTER}" in name]
        _refuse_difference(folder, result.unexpected_keys, empty)

    @property
    def modules(self) -> list[str]:
        """The adapted modules' names in the transformers model."""
        return list(self._layers)

    @property
    def layers(self) -> Mapping[str, Any]:
        """PEFT's layers by the adapted modules' names; their base layers are empty."""
        return self._layers

    def matrix(self, module: str) -> Update:
        """The same as [out, in] whatever the layer's own layout; of LoRA, its two factors."""
        layer = self._layers[module]
        if isinstance(layer, LoraLayer):
            left, right = (getattr(layer, part)[ADAPTER].weight.detach().float() for part in ("lora_B", "lora_A"))
            return LowRankUpdate(left, right, float(layer.scaling[ADAPTER]))
        delta = self.delta(module)
        return DenseUpdate(delta.T.contiguous() if isinstance(layer.get_base_layer(), Conv1D) else delta)

    def update(self, module: str) -> Update:
        """The same, for those who take it in rows."""
        return DenseUpdate(self.delta(module))

    @torch.no_grad()
    def delta(self, module: str) -> Tensor:
        """What is added to the module's weight, in fp32, laid out as the weight is stored."""
        return self._layers[module].get_delta_weight(ADAPTER).float()


def placed_deltas(adapter: Path, base: Checkpoint, *, trust: bool = False) -> tuple[Deltas, list[StoredWeight]]:
    """What an adapter adds, and where in the base's files the weights lie that it adds to.

    Raises:
        SokaError: exit 5 where adapter and base do not fit, exit 2 for a weight tied to the embedding, or without a place of its own.
    """
    deltas = Deltas(adapter, base.folder, trust=trust)
    empty = skeleton(base.folder, trust=trust)
    wanted = [target(empty, name) for name in deltas.modules]
    refuse_tied(wanted)
    weights = list(stored_weights(empty, base, wanted).values())
    refuse_unwritable(weights)
    return deltas, weights


def refuse_unwritable(weights: Iterable[StoredWeight]) -> None:
    """Exit 2, before anything is written, where the base's files have no place for a merged weight."""
    for weight in weights:
        if reason := weight.unwritable:
            raise SokaError(
                f"the adapter cannot be merged into this base: {weight.target.name} has no place of its own in its files",
                where=weight.where,
                why=reason,
                hint="train on the float model that this base was made from, and merge into that",
                exit_code=ExitCode.USAGE,
            )


def _stay(adapter_name: str, device: torch.device | None = None) -> None:
    """The adapter's tensors stay where they are."""


def _read_config(folder: Path) -> PeftConfig:
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf8"))
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from None
    if extra := [name for name in BEYOND_MATRICES if raw.get(name)]:
        raise _misfit(folder, [f"it trains more than what is added to weight matrices: {', '.join(extra)}"])
    if raw.get("bias", "none") != "none":
        raise _misfit(folder, [f"it trains biases (bias: {raw['bias']})"])
    start = raw.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in ("gaussian", "orthogonal"):
        raise _misfit(folder, [f"it was saved against a rewritten base (init_lora_weights: {start}), not in PEFT's converted form"])
    config.inference_mode = True
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from None


def _refuse_difference(folder: Path, unexpected: Iterable[str], empty: Iterable[str]) -> None:
    lines = [f"{name}: in the adapter, no such module in the base" for name in sorted(unexpected)]
    lines += [f"{name.replace(f'.{ADAPTER}', '')}: wanted by {CONFIG}, not in the adapter's file" for name in sorted(empty)]
    if lines:
        raise _misfit(folder, lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else []))


def _misfit(folder: Path, lines: list[str]) -> SokaError:
    return SokaError(
        "the adapter cannot be merged into this base model",
        where=str(folder),
        why="\n".join(lines),
        hint="train again on this base (soka train --force), or merge into the base that the adapter was trained on",
        exit_code=ExitCode.RUN,
    )


def _damaged(path: Path, why: str) -> SokaError:
    return SokaError(
        f"the adapter's {path.name} cannot be read",
        where=str(path),
        why=why,
        hint="restore the file from a copy, or train again: soka train --force",
        exit_code=ExitCode.RUN,
    )
