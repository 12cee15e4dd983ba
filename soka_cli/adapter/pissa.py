"""PiSSA as a baseline that leaves the base pristine: its initial factors are kept, and its result is saved as plain LoRA.

PEFT's PiSSA rewrites the base weight to W - s B0 A0 (arXiv 2404.02948). Resuming must subtract the very same B0 A0, and whoever
evaluates or merges the result must start from W; a second SVD, perhaps on another machine, would serve neither.
"""

import tempfile
import warnings
from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import transpose
from safetensors.torch import save_file
from torch import Tensor, nn

INITIAL = "initial"  # the name that PEFT's conversion gives the initial adapter while it subtracts it


def adapter_factors(model: PeftModel) -> dict[str, Tensor]:
    """A copy of the adapter's present lora_A [r, in] and lora_B [out, r] on the CPU, by PEFT's own names."""
    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def attach_initial(model: nn.Module, config: LoraConfig, initial: dict[str, Tensor]) -> PeftModel:
    """A PiSSA adapter from factors that an earlier start computed: the base becomes W - s B0 A0 as PEFT computes it, bit for bit."""
    plain = deepcopy(config)
    plain.init_lora_weights = True
    attached = get_peft_model(model, plain)
    result = set_peft_model_state_dict(attached, initial)
    if result.unexpected_keys or any("lora_" in name for name in result.missing_keys):
        raise ValueError("the initial factors are those of other modules")
    for layer in attached.modules():
        if isinstance(layer, LoraLayer):
            _subtract(layer, "default")
    attached.peft_config["default"].init_lora_weights = config.init_lora_weights
    return attached


@torch.no_grad()
def _subtract(layer: LoraLayer, name: str) -> None:
    base = layer.get_base_layer()
    weight = transpose(base.weight.to(torch.float32), layer.fan_in_fan_out)
    weight = weight - layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
    base.weight.data = transpose(weight.to(base.weight.dtype), layer.fan_in_fan_out)


def save_converted(model: PeftModel, initial: dict[str, Tensor], folder: Path) -> None:
    """Write B A - B0 A0 as a LoRA adapter of rank 2r on the pristine base: [B | -B0] [A ; A0]."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        start = Path(scratch) / INITIAL
        start.mkdir()
        save_file(initial, start / "adapter_model.safetensors", metadata={"format": "pt"})
        warnings.filterwarnings("ignore", message="Could not find a config file")  # the base's name need not be a folder or Hub id
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start), save_embedding_layers=False)
