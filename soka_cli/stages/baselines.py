"""How many parameters a baseline trains: by formula where PEFT's shapes are plain, else by laying it out on a base without weights."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron.shape import divisors
from soka_cli.recipe.schema import RANKED, AdapterSection
from soka_cli.stages.dimensions import LinearModule

LEAVES_COUNT = {
    "use_rslora",
    "lora_dropout",
    "alpha_pattern",
    "init_lora_weights",
    "init_weights",
    "rank_dropout",
    "rank_dropout_scale",
    "module_dropout",
    "decompose_both",
    "decompose_factor",
}
"""Fields of PEFT's configurations under which the formulas hold."""


def by_formula(section: AdapterSection) -> bool:
    """Whether `baseline_parameters` counts the method."""
    return section.method in RANKED and not set(section.config) - LEAVES_COUNT


def baseline_parameters(section: AdapterSection, module: LinearModule, rank: int) -> int:
    """What lora, pissa, dora or lokr trains on one module."""
    if section.method == "lokr":
        factor, both = section.config.get("decompose_factor", -1), section.config.get("decompose_both", False)
        return lokr_parameters(module, rank, factor=factor, both=both)
    magnitudes = module.out_features if section.method == "dora" else 0
    return lora_parameters(module, rank) + magnitudes


def lora_parameters(module: LinearModule, rank: int) -> int:
    """What LoRA trains at this rank: r (out + in)."""
    return rank * (module.out_features + module.in_features)


def lokr_parameters(module: LinearModule, rank: int, *, factor: int = -1, both: bool = False) -> int:
    """What PEFT's LoKr trains: a left factor a x b, and a right one c x d or its two halves of the rank; out = a c, in = b d.

    A factor is held whole where the rank is no less than half its larger side; the left one always, unless `both`.
    """
    a, c = lokr_sizes(module.out_features, factor)
    b, d = lokr_sizes(module.in_features, factor)
    left = rank * (a + b) if both and rank < max(a, b) / 2 else a * b
    right = rank * (c + d) if rank < max(c, d) / 2 else c * d
    return left + right


def lokr_sizes(size: int, factor: int) -> tuple[int, int]:
    """The two numbers that PEFT's LoKr splits a dimension into, the smaller first unless `factor` divides it: `factor` and the rest,
    else the largest divisor up to it (or up to the root, where it is -1) and the rest."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    small = max(one for one in divisors(size) if one * one <= size and (factor == -1 or one <= factor))
    return small, size // small


def laid_out(section: AdapterSection, folder: Path, *, trust: bool = False) -> dict[LinearModule, int]:
    """What a method of PEFT trains on the model of `folder`, module by module, with what modules share under the name `shared`.

    Raises:
        SokaError: exit 2, PEFT refuses the configuration, or can't lay the method out without weights.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from soka_cli.adapter.methods import peft_config
    from soka_cli.models.skeleton import skeleton

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(skeleton(folder, trust=trust), peft_config(section, seed=0), low_cpu_mem_usage=True)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError, KeyError) as error:
        raise SokaError(
            "PEFT cannot lay this method out on the base model",
            where="adapter.config",
            why=str(error).strip()[:400],
            hint="correct adapter.config and adapter.target_modules; a method that needs the weights for it is counted by soka train",
            exit_code=ExitCode.USAGE,
        ) from None
    seen: set[int] = set()
    found: dict[LinearModule, int] = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            found[_sizes(name, layer.get_base_layer())] = _trainable(layer, seen)
    shared = _trainable(model, seen)
    return found | ({LinearModule("shared", 0, 0): shared} if shared else {})


def _trainable(module: Any, seen: set[int]) -> int:
    """Trainable values that were not counted before."""
    fresh = [one for one in module.parameters() if one.requires_grad and id(one) not in seen]
    seen.update(map(id, fresh))
    return sum(one.numel() for one in fresh)


def _sizes(name: str, layer: Any) -> LinearModule:
    """Its sizes; those of a layer that is not linear (a norm) are its number of values by 1."""
    weight: Sequence[int] = tuple(layer.weight.shape)
    return LinearModule(
        name, getattr(layer, "out_features", weight[0]), getattr(layer, "in_features", weight[-1] if len(weight) > 1 else 1)
    )
