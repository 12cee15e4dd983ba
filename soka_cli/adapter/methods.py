"""The recipe's adapter section as a PEFT configuration: soka, lora and pissa through one door."""

from typing import Any

from peft import LoraConfig, PeftConfig, TaskType

from soka_cli.adapter.config import SokaConfig
from soka_cli.recipe.schema import AdapterSection

SIGMA = "soka_sigma"  # the part of a parameter's name that marks a SoKA sigma


def peft_config(section: AdapterSection, *, seed: int) -> PeftConfig:
    """The configuration of a fresh adapter on a causal language model.

    lora and pissa: rank r = rank.value, scale alpha / r with alpha = r where the recipe names none, no dropout. pissa starts
    from the r leading singular triplets of the weight by a full SVD, so the start does not depend on a random seed.

    Raises:
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
            seed=seed,
        )
    if section.method in ("lora", "pissa"):
        rank = section.rank.value
        return LoraConfig(
            **common,
            r=rank,
            lora_alpha=section.alpha if section.alpha is not None else rank,
            lora_dropout=0.0,
            bias="none",
            init_lora_weights="pissa" if section.method == "pissa" else True,
        )
    raise ValueError(f"method {section.method} has no adapter")


def _plain(choice: Any) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()
