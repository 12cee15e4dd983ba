"""`model.max_memory`: sizes as transformers' users write them, and what does not go with weights on the disk."""

from typing import Any

import pytest
from pydantic import ValidationError

from soka_cli.recipe.schema import MaxMemorySection, Recipe

FITTING: dict[str, Any] = {
    "model": {"name": "acme/small", "max_memory": {"gpu": "8GiB"}},
    "data": {"train": {"path": "acme/rows", "task": "gsm8k"}},
    "train": {"activation_checkpointing": True},
}
LORA = {"method": "lora", "rank": {"rule": "fixed", "value": 2}}
MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "packed weights": ("model", {"quantization": "nf4"}, "packed weights stay where they are used"),
    "full training": ("adapter", {"method": "full"}, "method full needs the weights at hand"),
    "a method that computes with the weights": ("adapter", LORA | {"method": "dora"}, "method dora needs the weights at hand"),
    "a start from gradients": ("adapter", {"init": "gradient"}, "init gradient needs the gradients of weights"),
    "copies of the base's modules": ("adapter", LORA | {"config": {"modules_to_save": ["lm_head"]}}, "modules_to_save copies weights"),
    "fetched weights that autograd keeps": ("train", {"activation_checkpointing": False}, "needs train.activation_checkpointing"),
    "weights twice as large as those that are bounded": ("train", {"precision": "fp32"}, "write dtype: float32"),
    "compiled layers": ("train", {"compile": "layers"}, "compile: layers does not go with"),
    "shared out over processes": ("train", {"strategy": "fsdp2"}, "strategy: fsdp2 does not go with"),
}


def recipe(section: str = "seed", more: dict[str, Any] | None = None) -> Recipe:
    return Recipe.model_validate(FITTING if more is None else FITTING | {section: FITTING.get(section, {}) | more})


@pytest.mark.parametrize(
    ("written", "size"), [("8GiB", 8 * 2**30), ("8GB", 8 * 10**9), ("8G", 8 * 10**9), ("1.5 MiB", 3 * 2**19), (77, 77), ("77", 77)]
)
def test_a_size_is_read_as_transformers_reads_it(written: Any, size: int) -> None:
    assert MaxMemorySection(gpu=written).gpu == size


def test_an_adapter_over_offloaded_weights_is_accepted() -> None:
    assert recipe().model.max_memory == MaxMemorySection(gpu=8 * 2**30)
    assert recipe("adapter", LORA).adapter.method == "lora"


@pytest.mark.parametrize("name", MISFITS)
def test_what_offloaded_weights_cannot_do_is_refused(name: str) -> None:
    section, more, words = MISFITS[name]
    with pytest.raises(ValidationError, match=words):
        recipe(section, more)
