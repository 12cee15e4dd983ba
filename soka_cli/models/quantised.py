"""Bases whose linear weights bitsandbytes holds in 8 or 4 bits: packed as they are loaded, or packed in their files already."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import base_error
from soka_cli.models.packing_kind import BITSANDBYTES, packing_kind
from soka_cli.run.resources import is_memory_full

Quantization = Literal["none", "int8", "nf4"]


def require_bitsandbytes(kind: str, where: str = "model.quantization") -> None:
    """Exit 3 where the package that packs and unpacks is not installed."""
    if find_spec(BITSANDBYTES) is None:
        raise SokaError(
            f"The base's weights are to be held as {kind}, and {BITSANDBYTES} is not installed.",
            where=where,
            hint='pip install "soka-cli[quant]", or model.quantization=none',
            exit_code=ExitCode.ENVIRONMENT,
        )


def loading_options(config: PreTrainedConfig, folder: Path, kind: Quantization, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What `from_pretrained` is told beside the type, so that linear weights are packed, or stay as they are stored; nothing for a
    float model that stays one. The output layer, embeddings and norms are never packed.

    Raises:
        SokaError: exit 3, where bitsandbytes is missing, or the files are packed already and in another way.
    """
    stored = stored_packing(config)
    if stored is not None:
        if kind not in ("none", stored):
            raise base_error(
                f"the base model's weights are packed already, as {stored}",
                where=str(folder / "config.json"),
                why=f"the recipe asks for {kind}",
                hint="model.quantization=none takes them as they are, or name the float model that was packed: model.name=FOLDER",
            )
        if stored in ("int8", "nf4", "fp4"):
            require_bitsandbytes(stored, str(folder / "config.json"))
        return {"device_map": {"": device}}
    if kind == "none":
        return {}
    require_bitsandbytes(kind)
    if kind == "int8":
        return {"device_map": {"": device}, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype)
    return {"device_map": {"": device}, "quantization_config": how}


def stored_packing(config: PreTrainedConfig) -> str | None:
    """How a checkpoint's weights are packed: int8, nf4, fp4 or the name of another method; None where they are not."""
    found = getattr(config, "quantization_config", None)
    return packing_kind(found if found is None or isinstance(found, dict) else found.to_dict())


def is_packed(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "is_quantized", False))


def settle(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let 4-bit layers compute in `dtype`, and leave their weights as they are.

    On a CPU with the right instructions bitsandbytes rearranges a weight when it is first used outside training, and rounds its
    scales to bfloat16 for good: a reading of eval_loss would change the base that training goes on with.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False


def prepare_training(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A packed base ready for adapters: frozen, what is not packed (norms, embeddings, the output layer) in fp32, products in `dtype`."""
    prepared: PreTrainedModel = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    settle(prepared, dtype)
    return prepared


def require_fit(adapted: torch.nn.Module, method: str, device: torch.device) -> None:
    """Exit 2 where an adapter cannot be computed over packed weights, tried on one token: some of PEFT's methods take the packed
    weight's size for the layer's, or lose the scales of an 8-bit layer on a CPU."""
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            for _ in range(2):  # what the first pass leaves behind counts too
                adapted.train()(input_ids=token)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if is_memory_full(error):
            raise
        raise SokaError(
            f"Method {method} does not work over this base's packed weights.",
            where="adapter.method, model.quantization",
            why=f"{type(error).__name__}: {str(error).strip()[:200]}",
            hint="adapter.method=soka or lora, another model.quantization, or model.quantization=none",
            exit_code=ExitCode.USAGE,
        ) from None
