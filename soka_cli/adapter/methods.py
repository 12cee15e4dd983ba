"""The recipe's adapter section as a PEFT configuration: every method through one door."""

from dataclasses import fields
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from soka_cli.adapter.config import SOKA, SokaConfig
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.mistakes import did_you_mean
from soka_cli.recipe.schema import AdapterSection

SIGMA = "soka_sigma"  # the part of a parameter's name that marks a SoKA sigma
LORA_B = "lora_B"
SAID_ELSEWHERE = {
    "r": "rank.value",
    "alpha": "alpha",
    "lora_alpha": "alpha",
    "target_modules": "target_modules",
    "use_dora": "method: dora",
    "peft_type": "method",
}
"""Fields of PEFT's configurations that the recipe says in its own words, and where."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # of LoRA; the others rewrite the base weight
UNFIT = {
    "ADALORA": "the state of its rank allocator would be lost with every checkpoint",
    "XLORA": "it mixes adapters that are trained already",
    "POLY": "it wants a task number with every row",
    "SHADOW": "its start is not the base model",
    "CARTRIDGE": "it distils texts, and learns a cache rather than weights",
    "ADAPTION_PROMPT": "it learns a prompt rather than weights",
}
"""Methods of PEFT that cannot go through this pipeline, and why."""


def peft_config(section: AdapterSection, *, seed: int) -> PeftConfig:
    """The configuration of a fresh adapter on a causal language model.

    lora, pissa, lokr, dora: rank r = rank.value, scale alpha / r with alpha = r where the recipe names none, no dropout; `config`
    adds further fields. pissa starts from the r leading singular triplets of the weight by a full SVD, so the start does not
    depend on a random seed. peft: the class that `config.peft_type` names, with the fields of `config`.

    Args:
        section: with a rank of its own, not one that is still to be matched.

    Raises:
        SokaError: exit 2, a field that PEFT's configuration does not have, or a value that it refuses.
        ValueError: method full, which has no adapter.
    """
    targets = section.target_modules
    common: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM, "target_modules": list(targets) if isinstance(targets, list) else targets}
    if section.method == "soka":
        return SokaConfig(
            **common,
            shape=_plain(section.shape),
            shape_pattern={name: _plain(choice) for name, choice in section.shape_pattern.items()},
            rank=section.rank.model_dump(exclude_none=True),
            init=section.init,
            sigma=section.sigma,
            product=section.product,
            seed=seed,
        )
    if section.method == "peft":
        return _named(section, common)
    if section.method == "full":
        raise ValueError("method full has no adapter")
    rank = section.rank.value
    alpha = section.alpha if section.alpha is not None else rank
    if section.method == "lokr":
        return _made(LoKrConfig, section.config, {**common, "r": rank, "alpha": alpha})
    stated: dict[str, Any] = {**common, "r": rank, "lora_alpha": alpha}
    if section.method == "pissa":
        stated["init_lora_weights"] = "pissa"
    if section.method == "dora":
        stated["use_dora"] = True
    return _made(LoraConfig, section.config, stated)


def _named(section: AdapterSection, common: dict[str, Any]) -> PeftConfig:
    """Method peft: the configuration class of `peft_type`."""
    asked = str(section.config["peft_type"]).upper()
    kinds = {str(kind.value): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind != SOKA}
    usable = [name for name in kinds if name not in UNFIT and not _learns_a_prompt(PEFT_TYPE_TO_CONFIG_MAPPING[kinds[name]])]
    if asked in kinds and asked not in usable:
        raise _refused(
            f"PEFT's method {asked} cannot be trained here",
            "peft_type",
            UNFIT.get(asked, "it learns a prompt rather than weights: there is nothing to merge, and evaluation asks the bare model"),
            f"take another: {', '.join(usable)}",
        )
    if asked not in usable:
        raise _refused(f"PEFT has no method {asked}{did_you_mean(asked, usable, kind='available')}", "peft_type", "", "name one of them")
    config = {name: value for name, value in section.config.items() if name != "peft_type"}
    return _made(PEFT_TYPE_TO_CONFIG_MAPPING[kinds[asked]], config, common, said=("target_modules",))


def _learns_a_prompt(kind: type[PeftConfig]) -> bool:
    return any(parent.__name__ == "PromptLearningConfig" for parent in kind.__mro__)


def _made(kind: type[PeftConfig], config: dict[str, Any], stated: dict[str, Any], said: tuple[str, ...] = ()) -> PeftConfig:
    """A configuration of this class: what the recipe states, and the further fields of `config`.

    `said` are the fields that the recipe says itself; where none are named, those of SAID_ELSEWHERE.
    """
    known = [one.name for one in fields(kind) if one.init]
    elsewhere = {name: SAID_ELSEWHERE[name] for name in said or SAID_ELSEWHERE}
    for name in config:
        if name in elsewhere and (name in known or name in stated):
            raise _refused(f"the recipe says {name} itself", name, "", f"adapter.{elsewhere[name]}")
        if name in ("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"):
            raise _refused(f"{name} is soka's to set", name, "", "drop it")
        if name not in known:
            kinds = f"{kind.__name__} has no field {name}{did_you_mean(name, known, kind='its fields')}"
            raise _refused(kinds, name, "", "name one of them, or drop it")
    start = config.get("init_lora_weights", True)
    if issubclass(kind, LoraConfig) and start not in PLAIN_STARTS:
        raise _refused(f"init_lora_weights: {start} rewrites the base", "init_lora_weights", "", "method: pissa, which puts it right again")
    if stated.get("init_lora_weights") and "init_lora_weights" in config:
        raise _refused("the recipe says init_lora_weights itself", "init_lora_weights", "", "adapter.method")
    own = {name: value for name, value in stated.items() if name in known}
    try:
        return kind(**config, **own)
    except (TypeError, ValueError) as error:
        raise _refused(f"{kind.__name__} does not take these fields", "", str(error).strip(), "correct them") from None


def _refused(what: str, field: str, why: str, hint: str) -> SokaError:
    return SokaError(what, where=f"adapter.config{field and '.'}{field}", why=why, hint=hint, exit_code=ExitCode.USAGE)


def attach(model: nn.Module, config: PeftConfig, *, foreign: bool) -> PeftModel:
    """Put a fresh adapter of one of PEFT's own methods on the base; its tensors are fp32 over a 16-bit base.

    Args:
        foreign: any method of PEFT's may come, so look whether it leaves the base's weights alone.

    Raises:
        SokaError: exit 2, PEFT refuses the configuration for this base, or its method rewrites the base's weights, so that an
            adapter saved alone would not be what was trained.
    """
    before = _magnitudes(model) if foreign else {}
    try:
        attached = get_peft_model(model, config)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise _refused("PEFT cannot put this method on the base model", "", str(error).strip()[:400], "correct adapter.config") from None
    held = {name.replace(".base_layer.", "."): value for name, value in _magnitudes(attached.get_base_model()).items()} if foreign else {}
    if changed := [name for name, value in before.items() if held.get(name, value) != value]:
        raise _refused(
            f"{config.peft_type.value} rewrites {len(changed)} weights of the base, the first is {changed[0]}",
            "",
            "an adapter saved without them would not be what was trained",
            "take another start or method",
        )
    return attached


def _magnitudes(model: nn.Module) -> dict[str, float]:
    """The sum of |w| of every parameter: it changes when a weight is rewritten, and costs one pass."""
    return {name: float(parameter.detach().abs().sum(dtype=torch.float32)) for name, parameter in model.named_parameters()}


def _plain(choice: Any) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()
