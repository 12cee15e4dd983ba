"""How a model's config.json says that its weights are packed."""

from collections.abc import Mapping
from typing import Any

BITSANDBYTES = "bitsandbytes"  # the package that packs


def packing_kind(told: Mapping[str, Any] | None) -> str | None:
    """int8, nf4, fp4 or the name of another method, from `quantization_config`; None where the weights are not packed."""
    if not told:
        return None
    if told.get("load_in_8bit") or told.get("_load_in_8bit"):
        return "int8"
    if told.get("load_in_4bit") or told.get("_load_in_4bit"):
        return str(told.get("bnb_4bit_quant_type", "fp4"))
    return str(told.get("quant_method", "a method of its own"))
