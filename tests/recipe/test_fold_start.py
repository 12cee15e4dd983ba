"""`adapter.fold_start`: what does not go with base weights that are changed for a while."""

from typing import Any

import pytest
from pydantic import ValidationError

from soka_cli.recipe.schema import Recipe

FOLDED: dict[str, Any] = {
    "model": {"name": "acme/small"},
    "adapter": {"fold_start": True},
    "data": {"train": {"path": "acme/rows", "task": "gsm8k"}},
    "train": {"activation_checkpointing": True},
}
MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "packed weights": ("model", {"quantization": "nf4"}, "with model.quantization: nf4 packed weights cannot take it in"),
    "weights that are fetched": ("model", {"max_memory": {"cpu": "8GiB"}}, "model.max_memory fetches them anew"),
    "weights that are shared out": ("train", {"strategy": "fsdp2"}, "with train.strategy: fsdp2 its weights are shared out"),
    "full training": ("adapter", {"method": "full"}, "method full does not read fold_start"),
    "another method": ("adapter", {"method": "lora", "rank": {"rule": "fixed", "value": 2}}, "method lora does not read fold_start"),
    "a number": ("adapter", {"fold_start": 1}, "valid boolean"),
}


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert Recipe.model_validate(FOLDED).adapter.fold_start
    assert not Recipe.model_validate(FOLDED | {"adapter": {}}).adapter.fold_start


@pytest.mark.parametrize("name", MISFITS)
def test_what_it_does_not_go_with_is_refused(name: str) -> None:
    section, more, words = MISFITS[name]
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate(FOLDED | {section: FOLDED[section] | more})
