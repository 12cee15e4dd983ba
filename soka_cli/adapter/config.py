"""SokaConfig: what a SoKA adapter is made of, in PEFT's terms."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from peft import PeftConfig, PeftType
from peft.utils.other import get_pattern_key

from soka_cli.kron import PLANS, KronFactors, KronShape, RankRule, choose_shape
from soka_cli.recipe.schema import INIT_READS, count_with_suffix

PRODUCTS = ("auto", *PLANS)


class MethodName(str):
    """A PEFT type that PEFT's closed enum lacks: a string with the `value` and `name` that enum members have."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return str(self)


def soka_type(members: Any = PeftType) -> Any:
    """PEFT's own member SOKA, on the day there is one; until then a string that behaves like it."""
    return members["SOKA"] if "SOKA" in members.__members__ else MethodName("SOKA")


SOKA = soka_type()

SIGMAS: dict[str, Callable[[KronFactors], KronFactors]] = {
    "separate": lambda start: start,
    "split": KronFactors.with_sigma_split,
    "rms": KronFactors.with_rms_one,
}
"""How a start's sigma is held: by itself beside factors of norm 1, folded into both factors, or beside factors of rms 1."""


def _find(pattern: dict[str, Any], module_name: str) -> Any:
    """The entry for a module: its full name first, then the first key that matches its end as a pattern; else None."""
    if module_name in pattern:
        return pattern[module_name]
    return pattern.get(get_pattern_key(pattern.keys(), module_name))


def _require_known_shape(choice: Any) -> None:
    """ValueError for a value that is no shape at all; whether it divides a weight shows when there is one."""
    sizes = [size for size in choice.values() if isinstance(size, int)] if isinstance(choice, dict) else []
    divisible = max(1, prod(sizes))
    choose_shape(choice, divisible, divisible)


def _rank_rule(mapping: dict[str, Any]) -> RankRule:
    """The rule that a recipe's mapping spells, its parameter count perhaps as 0.99M."""
    if "parameters" not in mapping:
        return RankRule.from_mapping(mapping)
    try:
        parameters = count_with_suffix(mapping["parameters"])
    except ValueError as error:
        raise ValueError(f"rank.parameters {error}") from None
    return RankRule.from_mapping({**mapping, "parameters": parameters})


def _default_rank() -> dict[str, Any]:
    return {"rule": "min", "tau": 0.90, "elbow": "gap", "max": 16}


@dataclass
class SokaConfig(PeftConfig):
    """dW = sum_k sigma_k U_k (x) V_k minus the same sum at the start, for every target module.

    Which modules: PEFT's own fields. How large: `shape` and `rank`, with the values of a recipe's adapter section. When an
    adapter is made, the rank and shape chosen for each module are written into `rank_pattern` and `shape_pattern` under its
    full name, so a saved config says them all and loading decomposes nothing. Modules that rule budget gives no term are
    written into `exclude_modules`. Starts from data (`init` gradient or early-update) are made by `soka decompose` and put on by
    `attach_factors`.

    Raises:
        ValueError: an unknown shape, rank rule or start; layer fields together with a pattern in `target_modules`.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name endings (list), a pattern (string) or all-linear; none takes what PEFT's LoRA does for the architecture."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Name endings (list) or a pattern (string) of modules to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Layer numbers to adapt; needs target_modules as a list."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers, where its place in module names is not the usual one."}
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole beside the adapter."})
    shape: str | dict[str, int] = field(default="balanced", metadata={"help": "Factor sizes: balanced, search, {block: B}, {m: M, n: N}."})
    shape_pattern: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Shapes of modules whose name is, or ends in a match of, the key."}
    )
    rank: dict[str, Any] = field(
        default_factory=_default_rank, metadata={"help": "Rule that chooses the number of terms, e.g. {rule: fixed, value: 4}."}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Number of terms of modules whose name is, or ends in a match of, the key."}
    )
    init: str = field(
        default="weight",
        metadata={
            "help": "Where the terms come from: weight (the leading terms of the module's own), random (others of the same sizes and "
            "sigmas), gradient or early-update (those of a factor file)."
        },
    )
    sigma: str = field(
        default="separate", metadata={"help": "separate: unit factors and their sigma; split: sqrt(sigma) in both factors, sigma 1."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True starts as the base model; False starts away from it, which only tests want."}
    )
    product: str = field(
        default="auto",
        metadata={
            "help": "How the update is computed: auto (the cheapest for each layer and batch), factored, merged or dense; docs/speed.md."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the decomposition; each module derives its own from this and its name."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SOKA
        self.saved = bool(self.inference_mode)  # PEFT writes every config so; a fresh one is made to train
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")
        if self.init not in INIT_READS:
            raise ValueError(f"init is {self.init!r}; there are: {', '.join(INIT_READS)}")
        if self.sigma not in SIGMAS:
            raise ValueError(f"sigma is {self.sigma!r}; there are: {', '.join(SIGMAS)}")
        if self.product not in PRODUCTS:
            raise ValueError(f"product is {self.product!r}; there are: {', '.join(PRODUCTS)}")
        _rank_rule(self.rank)
        for choice in (self.shape, *self.shape_pattern.values()):
            _require_known_shape(choice)

    @property
    def rank_rule(self) -> RankRule:
        """The rule of modules that `rank_pattern` does not name."""
        return _rank_rule(self.rank)

    def rank_of(self, module_name: str) -> int | None:
        """Number of terms that `rank_pattern` gives the module; None leaves it to the rule."""
        return _find(self.rank_pattern, module_name)

    def rule_of(self, module_name: str) -> RankRule:
        """The module's rule: the number that `rank_pattern` gives it, else the rule for all."""
        rank = self.rank_of(module_name)
        return self.rank_rule if rank is None else RankRule("fixed", value=rank)

    def shape_of(self, module_name: str, out_features: int, in_features: int) -> KronShape | None:
        """The module's factor sizes: out = m p, in = n q; None where they are to be searched.

        Raises:
            ValueError: the sizes asked for do not divide the weight's; names the module and the nearest that do.
        """
        found = _find(self.shape_pattern, module_name)
        try:
            return choose_shape(self.shape if found is None else found, out_features, in_features)
        except ValueError as error:
            raise ValueError(f"{module_name}: {error}") from error

    def record(self, module_name: str, shape: KronShape, rank: int) -> None:
        """Write what was chosen for a module back, so that a load finds it."""
        self.shape_pattern[module_name] = {"m": shape.m, "n": shape.n}
        self.rank_pattern[module_name] = rank

    def leave_out(self, module_names: Sequence[str]) -> None:
        """Exclude modules by their full names, beside those that are excluded already."""
        if not module_names:
            return
        before = self.exclude_modules
        patterns = [f"(?:{before})"] if isinstance(before, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in sorted(before or ())]
        self.exclude_modules = "|".join([*patterns, *map(re.escape, module_names)])
