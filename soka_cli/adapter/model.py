"""SokaModel: a base model with SoKA layers in place of its target modules."""

import copy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import get_quantization_kwargs, resolve_quantization_backend
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from soka_cli.adapter.budget import budgeted_terms
from soka_cli.adapter.config import SokaConfig
from soka_cli.adapter.layer import Linear, SokaLayer
from soka_cli.kron import KronFactors


class SokaModel(BaseTuner):
    """PEFT's tuner for SoKA; made by `peft.get_peft_model(model, SokaConfig(...))`, seldom by hand.

    Raises:
        ValueError: a target that is not a linear layer, or what `SokaLayer.update_layer` refuses; names the module.
    """

    prefix = "soka_"
    tuner_layer_cls = SokaLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """As PEFT's; `low_cpu_mem_usage` promises that the factors are filled in afterwards, so none are computed.

        Rule budget weighs all targets against each other, so there they are decomposed before the first layer is made.
        """
        config = self.peft_config[adapter_name]
        self._values_follow = low_cpu_mem_usage or _makes_empty_parameters()
        budgeted = {} if self._values_follow or config.inference_mode else self._budgeted(model, config, state_dict)
        self._values_follow = self._values_follow or bool(budgeted)
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        for name, start in budgeted.items():
            layer: Any = model.get_submodule(name)
            layer.start_from(adapter_name, config, start)

    def _budgeted(self, model: nn.Module, config: SokaConfig, state_dict: dict[str, Tensor] | None) -> dict[str, KronFactors]:
        """Each target's terms under rule budget; empty under any other. The keys of a state dict, where there is one, name the targets."""
        if config.rank_rule.rule != "budget":
            return {}
        if state_dict is None:
            targets = targeted_modules(model, config)
        else:
            targets = {name: model.get_submodule(name) for name in dict.fromkeys(key.rsplit(f".{self.prefix}", 1)[0] for key in state_dict)}
        quantization = get_quantization_kwargs(model)
        for name, target in targets.items():
            _require_linear(target, name, quantization)
        layers = {name: one if isinstance(one, SokaLayer) else SokaLayer(one, **quantization) for name, one in targets.items()}
        return budgeted_terms(layers, config)

    def _create_and_replace(
        self, peft_config: SokaConfig, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module, current_key: str
    ) -> None:
        if isinstance(target, SokaLayer):
            target.update_layer(adapter_name, peft_config, current_key, values_follow=self._values_follow)
            return
        quantization = get_quantization_kwargs(self.model)
        _require_linear(target, current_key, quantization)
        layer = Linear(target, adapter_name, peft_config, current_key, values_follow=self._values_follow, **quantization)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an adapter added beside the active ones is not trained until it is set
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put the module in place. PEFT's also moves it to the weight's device, which for an offloaded weight is meta.

        A layer that makes place for its base gives it the pristine weight back.
        """
        if isinstance(child, SokaLayer):
            child.unfold()
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Factors are fp32 from the start; without autocast they take the type of their base weight."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        for layer in self.model.modules():
            if isinstance(layer, SokaLayer):
                _, dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
                layer.cast_factors(adapter_name, dtype if dtype is not None and dtype.is_floating_point else torch.float32)


def _makes_empty_parameters() -> bool:
    """Whether PEFT's context of empty weights is on: `get_peft_model(low_cpu_mem_usage=True)` sets it and tells the tuner nothing."""
    return nn.ParameterDict({"probe": nn.Parameter(torch.empty(1))})["probe"].is_meta


def targeted_modules(model: nn.Module, config: SokaConfig) -> dict[str, nn.Module]:
    """The modules of a base model that the config adapts, by their names; by PEFT's own rules, changing neither."""
    config = copy.deepcopy(config)
    if config.target_modules is None:
        usual = SokaModel.target_module_mapping.get(BaseTuner.get_model_config(model).get("model_type"), [])
        config.target_modules = usual if isinstance(usual, str) else list(usual)
    config = _maybe_include_all_linear_layers(config, model)
    named = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in named.items() if isinstance(module, BaseTunerLayer))  # of layers that adapt already
    return {
        name: module
        for name, module in named.items()
        if name and not name.startswith(inside) and SokaModel._check_target_module_exists(config, name)
    }


def _require_linear(target: nn.Module, module_name: str, quantization: dict[str, Any]) -> None:
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, nn.Linear | Conv1D):
        return
    backend = resolve_quantization_backend(base, **quantization)
    if backend is None or backend.layer_type != "linear":
        raise ValueError(
            f"Target module {module_name} is a {type(base).__name__}, which SoKA does not support. "
            "It adapts torch.nn.Linear, transformers' Conv1D (GPT-2) and quantised linear layers."
        )
