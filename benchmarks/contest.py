"""Who is compared on what: the settings and the methods of `benchmarks.comparison`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[2] / "shared"
"""The models and data that come beside the project (`benchmarks/results/comparison.md` says where they are from)."""

MAIN = ("soka", "soka-75", "soka-random", "soka-sigma10", "lora", "pissa", "full")
MORE = (*MAIN, "soka-search", "soka-min", "soka-gradient", "soka-early", "lokr", "dora")


@dataclass(frozen=True)
class Setting:
    """A model, what it learns, and for how long.

    Args:
        parameters: of the adapters at 100%: those of LoRA with `rank` on all linear layers.
        train, validation, test: sections of a recipe; paths are relative to the shared folder.
    """

    name: str
    about: str
    model: str
    train: dict[str, Any]
    validation: dict[str, Any]
    test: dict[str, Any]
    max_length: int
    steps: int
    batch_size: int
    eval_every: int
    parameters: int
    rank: int = 4
    methods: tuple[str, ...] = MAIN
    eval: list[dict[str, Any]] = field(default_factory=list)

    def recipe(self, beside: Path, *, test: bool) -> dict[str, Any]:
        """The recipe without its sweep, with paths relative to the folder that it will lie in."""

        def placed(section: dict[str, Any]) -> dict[str, Any]:
            at = section.get("path")
            if at is None or at.startswith("soka:"):
                return section
            return section | {"path": os.path.relpath(SHARED / at, beside)}

        return {
            "model": {
                "name": self.model if self.model.startswith("soka:") else os.path.relpath(SHARED / self.model, beside),
                "dtype": "float32",
            },
            "adapter": {"method": "soka", "target_modules": "all-linear", "rank": {"rule": "fixed", "value": self.rank}},
            "data": {
                "train": placed(self.train),
                "validation": placed(self.test if test else self.validation),
                "template": "plain",
                "max_length": self.max_length,
            },
            "train": {
                "steps": self.steps,
                "batch_size": self.batch_size,
                "micro_batch_size": self.batch_size,
                "precision": "fp32",
                "eval_every": self.eval_every,
                "save_every": self.steps,
                "keep_checkpoints": 1,
            },
            "eval": [placed(entry) for entry in self.eval],
        }


def ranked(method: str, share: float = 1.0, **config: Any) -> Callable[[Setting], dict[str, Any]]:
    """A baseline whose rank is the setting's."""

    def options(setting: Setting) -> dict[str, Any]:
        rank = {"rule": "fixed", "value": round(share * setting.rank)}
        adapter = {"method": method, "target_modules": "all-linear", "rank": rank}
        return {"adapter": adapter | ({"config": config} if config else {})}

    return options


def soka(share: float = 1.0, rank: dict[str, Any] | None = None, **options: Any) -> Callable[[Setting], dict[str, Any]]:
    """SoKA with as many terms in every module as LoRA has ranks, or by another rule."""

    def chosen(setting: Setting) -> dict[str, Any]:
        rule = rank or {"rule": "fixed", "value": round(share * setting.rank)}
        if rule["rule"] == "budget":
            rule = rule | {"parameters": setting.parameters}
        return {"adapter": {"method": "soka", "target_modules": "all-linear", "rank": rule} | options}

    return chosen


METHODS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "soka": soka(),
    "soka-75": soka(0.75),
    "soka-50": soka(0.5),
    "soka-min": soka(rank={"rule": "min", "max": 8}),
    "soka-budget": soka(rank={"rule": "budget"}),
    "soka-search": soka(shape="search"),
    "soka-lowrank": soka(shape={"m": 128, "n": 1}),  # for weights with 128 rows every term is of rank one, as LoRA's
    "soka-random": soka(init="random"),
    "soka-gradient": soka(init="gradient"),
    "soka-early": soka(init="early-update", init_lr=1e-3),
    "soka-split": soka(sigma="split"),
    "soka-sigma10": soka(),
    "soka-sigma100": soka(),
    "soka-early-sigma10": soka(init="early-update", init_lr=1e-3),
    "soka-rms": soka(sigma="rms"),
    "lora": ranked("lora"),
    "lora-75": ranked("lora", 0.75),
    "rslora": ranked("lora", use_rslora=True),
    "loraplus": ranked("lora"),
    "pissa": ranked("pissa"),
    "pissa-75": ranked("pissa", 0.75),
    "dora": ranked("dora"),
    "lokr": lambda setting: {
        "adapter": {
            "method": "lokr",
            "target_modules": "all-linear",
            "match_parameters": setting.parameters,
            "config": {"decompose_factor": 4},
        }
    },
    "full": lambda setting: {"adapter": {"method": "full"}},
}

SECOND_RATES = {
    "soka-sigma10": ("train.sigma_lr", 10.0),
    "soka-sigma100": ("train.sigma_lr", 100.0),
    "soka-early-sigma10": ("train.sigma_lr", 10.0),
    "soka-rms": ("train.sigma_lr", 1e-3),  # sigma is some thousand times smaller beside such factors
    "loraplus": ("train.lora_b_lr", 16.0),
}
"""The options that hold a second rate, and how many times the first it is."""

GSM8K = {"path": "data/gsm8k/train.jsonl", "task": "gsm8k"}
MBPP = {"path": "data/mbpp/mbpp.jsonl", "task": "mbpp", "split": "test"}  # ids 11 to 510, of which the base has seen none
DEMO_TEST = "soka:demo/data/test.jsonl"

SETTINGS = {
    one.name: one
    for one in (
        Setting(
            name="stories-gsm8k",
            about="stories260K (children's stories) on GSM8K, a very large shift: 60 steps of 8 rows",
            model="models/stories260K",
            train=GSM8K,
            validation={"fraction": 0.01},
            test={"path": "data/gsm8k/test.jsonl", "rows": 80},
            max_length=256,
            steps=60,
            batch_size=8,
            eval_every=15,
            parameters=23_120,
            methods=MAIN,
        ),
        Setting(
            name="llama288-mbpp",
            about="llama288-math (mathematics and 384 MBPP programs) on other MBPP programs, a mild shift: 30 steps of 8 rows",
            model="models/llama288-math",
            train=MBPP,
            validation={"fraction": 0.15},
            test={"path": "data/mbpp/mbpp.jsonl", "split": "validation"},
            max_length=320,
            steps=30,
            batch_size=8,
            eval_every=10,
            parameters=82_944,
        ),
        Setting(
            name="demo",
            about="the demo's base (arithmetic and stories) on its problems of two steps, made harder by few steps: 40 of 16 rows",
            model="soka:demo/model",
            train={"path": "soka:demo/data/train.jsonl", "task": "gsm8k"},
            validation={"fraction": 0.03},
            test={"path": DEMO_TEST},
            max_length=256,
            steps=40,
            batch_size=16,
            eval_every=10,
            parameters=40_960,
            methods=MORE,
            eval=[{"task": "gsm8k", "protocol": "plain", "path": DEMO_TEST, "limit": 100, "max_new_tokens": 128, "batch_size": 50}],
        ),
    )
}
