"""Every rank rule, every shape and every start on the real models of every form, one choice at a time."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from soka_cli.adapter import FactorFile
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import decompose
from tests import builders

pytestmark = pytest.mark.slow

MODELS = {
    "llama288-math": ["layers.0.self_attn.q_proj", "layers.3.mlp.down_proj"],
    "stories260K": ["layers.0.self_attn.k_proj", "layers.4.mlp.up_proj"],
    "rxn-albert": ["albert_layers.0.attention.query", "albert_layers.0.ffn"],
    "aren-translit": ["encoder.layers.0.fc1", "decoder.layers.5.encoder_attn.k_proj"],
}
"""Two targets of each: a square weight and another one, or a grouped one."""
ROWS = {
    "llama288-math": {"question": "What is 2 + 3?", "answer": "5"},
    "stories260K": {"question": "Once upon a time", "answer": ", there was a little girl."},
    "rxn-albert": {"question": "CCO.CC(=O)Cl>>", "answer": "CC(=O)OCC"},
    "aren-translit": {"question": "آتزمون", "answer": "atzmon"},
}
RULES: dict[str, dict[str, Any]] = {
    "min": {"rule": "min", "max": 4},
    "energy": {"rule": "energy", "tau": 0.3, "max": 8},
    "gap": {"rule": "elbow", "elbow": "gap", "max": 4},
    "relative-gap": {"rule": "elbow", "elbow": "relative-gap", "max": 4},
    "chord": {"rule": "elbow", "elbow": "chord", "max": 4},
    "gavish-donoho": {"rule": "gavish-donoho", "max": 4},
    "fixed": {"rule": "fixed", "value": 3},
    "budget": {"rule": "budget", "parameters": 5000, "max": 4, "floor": 1},
}
BOUND_BY = {
    "min": {"energy", "elbow", "max"},
    "energy": {"energy", "max"},
    **{elbow: {"elbow", "max"} for elbow in ("gap", "relative-gap", "chord")},
    "gavish-donoho": {"gavish-donoho", "max"},
    "fixed": {"fixed"},
    "budget": {"budget", "max"},
}
SHAPES: dict[str, Any] = {"balanced": "balanced", "search": "search", "block": {"block": 4}, "explicit": {"m": 4, "n": 8}}
INITS = ("weight", "random", "gradient", "early-update")


def decomposed(folder: Path, model: str, **choices: Any) -> StageContext:
    base = builders.shared_folder("models", model)
    rows = builders.write_jsonl(folder / "rows.jsonl", [ROWS[model]])
    init = choices.get("init", "weight")
    own = ({"init_rows": 1} if init in ("gradient", "early-update") else {}) | ({"init_steps": 2} if init == "early-update" else {})
    adapter = {"target_modules": MODELS[model], "rank": {"rule": "fixed", "value": 2}, **choices, **own}
    mapping = builders.recipe_mapping(base, rows, adapter=adapter)
    mapping["data"]["train"] = {"path": str(rows), "prompt": "question", "target": "answer"}
    context: StageContext = builders.stage_context(folder, mapping)
    decompose(context)
    return context


def sound_records(context: StageContext) -> list[dict[str, Any]]:
    """The modules of layers.json, whose numbers are finite and agree with the factors."""
    layers = json.loads(context.layout.layers.read_text())
    factors = FactorFile.read(context.layout.factors).modules
    records: list[dict[str, Any]] = layers["modules"]
    assert len(records) == 2 and {one["name"] for one in records} == factors.keys() and context.layout.spectra.is_file()
    for one in records:
        assert all(math.isfinite(value) for value in one.values() if isinstance(value, int | float))
        assert (one["m"] * one["p"], one["n"] * one["q"]) == (one["out_features"], one["in_features"])
        terms = factors[one["name"]]
        assert terms.left.shape == (one["rank"], one["m"], one["n"]) and terms.right.shape == (one["rank"], one["p"], one["q"])
        assert all(bool(part.isfinite().all()) for part in (terms.left, terms.right, terms.sigma))
        assert one["total_energy"] > 0 and 0 < one["energy_kept"] <= 1 + 1e-6 and one["rank"] >= 1
    return records


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", MODELS)
def test_every_rule_chooses_terms_of_every_model_and_says_what_bound_them(tmp_path: Path, model: str, rule: str) -> None:
    records = sound_records(decomposed(tmp_path, model, rank=RULES[rule]))
    assert {one["rank_bound_by"] for one in records} <= BOUND_BY[rule] | {"full-rank", "unresolved"}
    assert all(one["rank"] <= RULES[rule].get("max", 3) for one in records)
    if rule == "budget":
        assert sum(one["parameters"] for one in records) <= 5000


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model", MODELS)
def test_every_shape_divides_the_weights_of_every_model(tmp_path: Path, model: str, shape: str) -> None:
    context = decomposed(tmp_path, model, shape=SHAPES[shape])
    records = sound_records(context)
    if shape == "block":
        assert all((one["p"], one["q"]) == (4, 4) for one in records)
    if shape == "explicit":
        assert all((one["m"], one["n"]) == (4, 8) for one in records)
    assert context.layout.search.is_file() is (shape == "search")


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_starts_from_its_weights_from_chance_from_gradients_and_from_updates(tmp_path: Path, model: str, init: str) -> None:
    records = sound_records(decomposed(tmp_path, model, init=init))
    from_the_weight = [math.isclose(one["weight_energy"], one["total_energy"]) for one in records]
    assert from_the_weight == [init in ("weight", "random")] * 2
