"""An adapter read from its two files alone: module by module, without PEFT, a model class or the other modules' factors.

Only what is beyond doubt is read so: SoKA, LoRA (PiSSA in its converted form) and LoKr on a base of plain linear layers, with
every option at its usual value and each tensor where it should be. Whatever else there is, `deltas` and PEFT judge.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from soka_cli.kron import KronFactors, kron_difference
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.stages.updates import KronUpdate, LowRankUpdate, Update

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
PLAIN_KINDS = frozenset(
    (
        "cohere", "gemma", "gemma2", "granite", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3",
        "stablelm", "starcoder2",
    )
)  # fmt: skip
"""Kinds of model (config.json's model_type) whose linear layers are stored [out, in], each under its own name."""

FACTORS = ("U", "V", "sigma")
PARTS = {
    "SOKA": tuple(f"soka_{start}{part}" for start in ("", "start_") for part in FACTORS),
    "LORA": ("lora_A.weight", "lora_B.weight"),
    "LOKR": ("lokr_w1", "lokr_w2"),
}
"""The tensors of a module by the kind of adapter; LoKr with factors of its own (lokr_w2_a, ...) is left to PEFT."""

UNDERSTOOD = frozenset(
    (
        "alpha", "auto_mapping", "base_model_name_or_path", "decompose_both", "decompose_factor", "exclude_modules",
        "inference_mode", "init", "init_lora_weights", "init_weights", "lora_alpha", "lora_dropout", "megatron_core",
        "module_dropout", "peft_type", "peft_version", "product", "qalora_group_size", "r", "rank", "rank_dropout", "rank_pattern",
        "revision", "seed", "shape", "shape_pattern", "sigma", "target_modules", "task_type", "use_effective_conv2d", "use_rslora",
    )
)  # fmt: skip
"""Options of adapter_config.json that are read here, or say nothing about the update; any other one that is set is PEFT's to judge."""


@dataclass(frozen=True)
class AdapterFile:
    """A folder's adapter, whose modules are those that its configuration names on the base."""

    folder: Path
    kind: str
    scale: float
    modules: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, base: Checkpoint) -> "AdapterFile | None":
        """The adapter; None where anything about it is not plain, and PEFT has to say what it is or what is wrong with it."""
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf8"))
            facts = json.loads((base.folder / "config.json").read_text(encoding="utf8"))
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                sizes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                dtypes = {file.get_slice(name).get_dtype() for name in sizes}
        except (OSError, ValueError, SafetensorError):
            return None
        kind = config.get("peft_type") if isinstance(config, dict) and isinstance(facts, dict) else None
        if kind not in PARTS or dtypes != {"F32"} or not _is_plain(config, facts):
            return None
        modules = _targeted(config, base)
        parts = {module: [f"{PREFIX}{module}.{part}" for part in PARTS[kind]] for module in modules}
        if not modules or {name for names in parts.values() for name in names} != sizes.keys():
            return None
        if not all(_fits(config, [sizes[name] for name in names], base.shape(f"{module}.weight")) for module, names in parts.items()):
            return None
        return cls(folder, kind, _scale(config), tuple(modules))

    def factors(self, module: str) -> list[Tensor]:
        """The module's tensors, in the order of `PARTS`, copied out of the file."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            return [file.get_tensor(f"{PREFIX}{module}.{part}").clone() for part in PARTS[self.kind]]

    def update(self, module: str) -> Update:
        """What is added to the module's weight [out, in]."""
        held = self.factors(module)
        if self.kind == "LORA":
            return LowRankUpdate(held[1], held[0], self.scale)
        if self.kind == "LOKR":
            return KronUpdate(((held[0][None], held[1][None], torch.ones(1)),), self.scale)
        return KronUpdate(kron_difference(KronFactors(*held[:3]), KronFactors(*held[3:])))


def _is_plain(config: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether base and adapter have no option but those that are understood here."""
    others = {name for name, value in config.items() if value and name not in UNDERSTOOD and (name, value) != ("bias", "none")}
    start = config.get("init_lora_weights", True)
    patterned = bool(config.get("rank_pattern")) and config["peft_type"] != "SOKA"
    rewritten = isinstance(start, str) and start.lower() not in ("gaussian", "orthogonal")
    packed = bool(facts.get("quantization_config"))
    return facts.get("model_type") in PLAIN_KINDS and not (others or patterned or rewritten or packed)


def _scale(config: Mapping[str, Any]) -> float:
    """What the product of the factors is multiplied by."""
    if config["peft_type"] == "SOKA":
        return 1.0
    alpha = config["lora_alpha" if config["peft_type"] == "LORA" else "alpha"]
    return float(alpha / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"]))


def _targeted(config: Mapping[str, Any], base: Checkpoint) -> list[str]:
    """The modules that PEFT would adapt, of those that the checkpoint holds a matrix of; none where a table of tokens, which may be
    tied to another, is among them."""
    names = [name.removesuffix(".weight") for name in base.names if name.endswith(".weight") and len(base.shape(name)) == 2]
    found = [name for name in names if _matches(config.get("target_modules"), name) and not _matches(config.get("exclude_modules"), name)]
    return [] if {"lm_head", "model.embed_tokens"} & set(found) else found


def _matches(wanted: Any, name: str) -> bool:
    """PEFT's rule: a pattern for the whole name, or whole names and endings."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted or ())


def _fits(config: Mapping[str, Any], held: list[tuple[int, ...]], size: tuple[int, ...]) -> bool:
    """Whether factors of these sizes are those of a weight of `size`, and of the rank that the configuration says."""
    if config["peft_type"] == "LORA":
        return held == [(config["r"], size[1]), (size[0], config["r"])]
    if config["peft_type"] == "LOKR":
        (m, n), (p, q) = held
        return size == (m * p, n * q)
    (rank, m, n), (_, p, q), _ = held[:3]
    return held == [(rank, m, n), (rank, p, q), (rank,)] * 2 and size == (m * p, n * q)
