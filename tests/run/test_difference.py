from typing import Any

import pytest

from soka_cli.run.difference import difference


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({"train": {"lr": 2e-05}}, {"train": {"lr": 0.0001}}, "train.lr: 2e-05 -> 0.0001"),
        ({"train": {"steps": None}}, {"train": {"steps": 50}}, "train.steps: null -> 50"),
        ({}, {"seed": 1}, "seed: (not set) -> 1"),
        ({"seed": 1}, {}, "seed: 1 -> (not set)"),
        ({"t": ["q_proj", "v_proj"]}, {"t": ["q_proj"]}, "t: [q_proj, v_proj] -> [q_proj]"),
        ({"shape": "balanced"}, {"shape": {"block": 64}}, "shape: balanced -> {block: 64}"),
        ({"eval": [{"limit": 1}, {"limit": 2}]}, {"eval": [{"limit": 1}, {"limit": 3}]}, "eval.1.limit: 2 -> 3"),
        ({"sha": "a" * 64}, {"sha": "b" * 64}, f"sha: {'a' * 12} -> {'b' * 12}"),
        ({"flag": True}, {"flag": False}, "flag: true -> false"),
        ({"eval": [{"limit": 1}]}, {"eval": []}, "eval: [{limit: 1}] -> []"),
    ],
)
def test_a_difference_is_said_as_a_person_would_write_it(old: dict[str, Any], new: dict[str, Any], line: str) -> None:
    assert difference(old, new) == [line]


def test_equal_inputs_have_no_difference_whatever_the_order_of_keys() -> None:
    assert difference({"a": {"b": [1, {"c": 2}]}, "d": 1}, {"d": 1, "a": {"b": [1, {"c": 2}]}}) == []


def test_every_changed_value_has_its_own_line() -> None:
    old = {"model": {"name": "a", "dtype": "float32"}, "train": {"lr": 1.0, "steps": 1}}
    new = {"model": {"name": "b", "dtype": "float32"}, "train": {"lr": 2.0, "steps": 2}}
    assert difference(old, new) == ["model.name: a -> b", "train.lr: 1.0 -> 2.0", "train.steps: 1 -> 2"]
