"""A base model without weights: its modules' names, types and sizes on the meta device, and what an adapter would target."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import base_error


@dataclass(frozen=True)
class Target:
    """A linear module that an adapter is put on.

    `weight_name` is the parameter's name in the transformers model; `transposed` says that it is stored [in, out]
    (GPT-2's Conv1D) instead of [out, in]. `tied_to` names the parameter that the weight is shared with, if any.
    """

    name: str
    weight_name: str
    out_features: int
    in_features: int
    transposed: bool = False
    tied_to: str | None = None

    @property
    def kind(self) -> str:
        """The module's type in a person's words: the last part of its name, e.g. q_proj."""
        return self.name.rpartition(".")[2]


def read_config(folder: Path, *, trust: bool = False) -> PreTrainedConfig:
    """config.json as transformers reads it. Exit 3 where it is damaged, of an unknown kind, or asks for code that is not trusted."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise base_error(
            "the base model's config.json cannot be used",
            where=str(folder / "config.json"),
            why=f"{type(error).__name__}: {str(error).strip()[:300]}",
            hint="compare the file with its source; a model that brings its own code needs model.trust_remote_code=true, which runs it",
        ) from None


def model_class(config: PreTrainedConfig, folder: Path, *, trust: bool = False) -> type[PreTrainedModel]:
    """The transformers class that the checkpoint was saved from, with its head; the causal language model where it names none. Where
    its own code is trusted, the class that config.json finds there."""
    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM") if trust else None
    if own is not None:
        found: type[PreTrainedModel] = get_class_from_dynamic_module(own, folder)
        return found
    named = next(iter(config.architectures or ()), "")
    name = named if _has_head(named) else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, named)
    chosen = getattr(transformers, name, None) if name else None
    if isinstance(chosen, type) and issubclass(chosen, PreTrainedModel):
        return chosen
    raise SokaError(
        f"transformers {transformers.__version__} has no model class for {named or config.model_type}",
        where="config.json: architectures",
        hint="take a model that transformers supports, e.g. model.name=meta-llama/Llama-2-7b-hf",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _has_head(name: str) -> bool:
    return bool(name) and (not name.endswith("Model") or name.endswith(("LMHeadModel", "DoubleHeadsModel")))


def skeleton(folder: Path, *, trust: bool = False) -> PreTrainedModel:
    """The model of `folder` on the meta device: every module and parameter shape, no memory for weights. `trust` runs its own code."""
    config = read_config(folder, trust=trust)
    with torch.device("meta"), no_init_weights():
        model = model_class(config, folder, trust=trust)(config)
    return model.eval()


def ties(model: PreTrainedModel) -> dict[str, str]:
    """Parameters that share another's storage: name -> name of the one that is kept, e.g. lm_head.weight -> model.embed_tokens.weight."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def targets(model: PreTrainedModel, target_modules: Sequence[str] | str) -> dict[str, Target]:
    """The linear modules that PEFT would adapt for the same `target_modules`, in the model's order.

    A list holds whole names or endings, a string is a pattern for the whole name, or `all-linear`.

    Raises:
        SokaError: exit 2, where nothing matches (the kinds that are there are listed) or a match is no linear layer.
    """
    chosen = target_modules if isinstance(target_modules, str) else list(target_modules)
    rule = _maybe_include_all_linear_layers(LoraConfig(target_modules=chosen), model)
    matched = {name: module for name, module in model.named_modules() if name and check_target_module_exists(rule, name)}
    if not matched:
        raise _nothing_matches(model, target_modules)
    if strange := {name: type(module).__name__ for name, module in matched.items() if not isinstance(module, nn.Linear | Conv1D)}:
        name, kind = next(iter(strange.items()))
        raise SokaError(
            f"target_modules matches {len(strange)} modules that are no linear layers, the first is {name} ({kind})",
            where="adapter.target_modules",
            hint=f"name linear modules: {', '.join(linear_kinds(model))}; or all-linear",
            exit_code=ExitCode.USAGE,
        )
    return {name: target(model, name) for name in matched}


def target(model: PreTrainedModel, name: str) -> Target:
    """What is known of one linear module of the model."""
    module, weight = model.get_submodule(name), f"{name}.weight"
    shared = ties(model) | {kept: other for other, kept in ties(model).items()}
    tied_to = shared.get(weight)
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
        return Target(name, weight, out_features, in_features, transposed=True, tied_to=tied_to)
    assert isinstance(module, nn.Linear)
    return Target(name, weight, module.out_features, module.in_features, tied_to=tied_to)


def linear_kinds(model: nn.Module) -> list[str]:
    """The last parts of the linear modules' names, each once, in the model's order."""
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return list(dict.fromkeys(names))


def _nothing_matches(model: PreTrainedModel, target_modules: Sequence[str] | str) -> SokaError:
    asked = target_modules if isinstance(target_modules, str) else ", ".join(target_modules)
    kinds = linear_kinds(model)
    pattern = "a string is a pattern for the whole module name; " if isinstance(target_modules, str) else ""
    return SokaError(
        f"target_modules ({asked}) matches no module of {type(model).__name__}",
        where="adapter.target_modules",
        why=f"{pattern}the linear modules are called {', '.join(kinds)}",
        hint=f"adapter.target_modules='[{', '.join(kinds[:2])}]', or adapter.target_modules=all-linear",
        exit_code=ExitCode.USAGE,
    )


def tied_linear(model: PreTrainedModel) -> dict[str, str]:
    """Linear modules whose weight is another parameter's too: module name -> that parameter, e.g. lm_head -> model.embed_tokens.weight."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return {name: found.tied_to for name in names if (found := target(model, name)).tied_to is not None}


def refuse_tied(wanted: Iterable[Target]) -> None:
    """A weight that the embedding shares cannot be adapted alone: merging would change the embedding with it. Exit 2."""
    for target in wanted:
        if target.tied_to is not None:
            raise SokaError(
                f"{target.name} shares its weight with {target.tied_to}, so it cannot be adapted alone",
                where="adapter.target_modules",
                why="the base model ties the two; a merged model could not hold both values",
                hint=f"leave {target.kind} out of adapter.target_modules",
                exit_code=ExitCode.USAGE,
            )
