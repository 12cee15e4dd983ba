"""Weights that bitsandbytes packed into 4 or 8 bits, as transformers saves them, and the values that they stand for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import Checkpoint

FOUR_BIT = ("nf4", "fp4")
STATISTICS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
SCALES = "SCB"


def packing(checkpoint: Checkpoint, name: str) -> tuple[str, tuple[str, ...]] | None:
    """How the weight `name` is packed (nf4, fp4 or int8) and the tensors that say how to unpack it; None where it is not."""
    for kind in FOUR_BIT:
        state = f"{name}.quant_state.bitsandbytes__{kind}"
        if state in checkpoint:
            return kind, (state, *(f"{name}.{one}" for one in STATISTICS if f"{name}.{one}" in checkpoint))
    scales = f"{name.removesuffix('weight')}{SCALES}"
    if name.endswith("weight") and scales in checkpoint and checkpoint.dtype(name) is torch.int8:
        return "int8", (scales,)
    return None


def unpacked(weight: Tensor, kind: str, beside: Mapping[str, Tensor]) -> Tensor:
    """The values [out, in] that a packed weight stands for: fp32 of int8, else the type that it was packed from.

    Raises:
        SokaError: exit 3, where bitsandbytes is not installed.
        ValueError: what lies beside the weight does not fit it.
    """
    try:
        from bitsandbytes import functional
    except ImportError:
        raise SokaError(
            f"the base model's weights are packed by bitsandbytes ({kind}), which is not installed",
            hint='pip install "soka-cli[quant]", or name the float model that was packed: model.name=FOLDER',
            exit_code=ExitCode.ENVIRONMENT,
        ) from None
    try:
        if kind == "int8":
            (scales,) = beside.values()
            return functional.int8_vectorwise_dequant(weight, scales)
        return functional.dequantize_4bit(weight, functional.QuantState.from_dict(dict(beside), device=torch.device("cpu")))
    except (RuntimeError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
