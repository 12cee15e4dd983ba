"""soka plan: counts that follow from the shapes alone, without weights, network or transformers."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import find_recipe
from soka_cli.recipe.schema import ModelSection
from soka_cli.run.layout import RunLayout
from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import dimensions, shape_table
from soka_cli.stages.plan import plan
from tests import builders

LLAMA = "meta-llama/Llama-2-7b-hf"
PAPERS_RULE = "adapter.rank={rule: min, tau: 0.90, elbow: gap, max: 16}"
SEVEN = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"


def planned(tmp_path: Path, recipe: str | Path, *overrides: str) -> dict[str, Any]:
    """The figures of a plan, made offline, read back from plan.json."""
    layout = RunLayout(tmp_path / "run")
    outcome = plan(StageContext(loaded=load_recipe(recipe, overrides), layout=layout, offline=True))
    written = json.loads(layout.plan.read_text())
    assert written == outcome.figures
    return written


@pytest.mark.parametrize("recipe", ["gsm8k", "math", "mbpp", "gsm8k-train", "math-train", "mbpp-train"])
def test_a_packaged_recipe_is_planned_without_weights_or_network(recipe: str, tmp_path: Path) -> None:
    figures = planned(tmp_path, recipe)
    assert figures["model"] == {"name": LLAMA, "source": "packaged table", "parameters": 6_738_415_616}
    assert [(one["kind"], one["modules"], one["term_parameters"]) for one in figures["kinds"]] == [
        ("q_proj", 32, 8193),
        ("v_proj", 32, 8193),
    ]
    assert figures["totals"]["parameters"] == {"from": 991_353, "to": 991_353}
    assert figures["totals"]["components"] == {"from": 121, "to": 121}


def test_the_papers_rule_gives_a_range_from_one_term_to_max(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", PAPERS_RULE)
    assert figures["totals"]["parameters"] == {"from": 64 * 8193, "to": 64 * 16 * 8193}


def test_the_papers_size_is_121_terms(tmp_path: Path) -> None:
    """57 modules of two terms and 7 of one: 991,353; 0.99M is one term less."""
    term = planned(tmp_path, "gsm8k")["kinds"][0]["term_parameters"]
    assert (57 * 2 + 7) * term == 991_353
    rounded = planned(tmp_path, "gsm8k", "adapter.rank.parameters=0.99M")
    assert rounded["totals"]["parameters"] == {"from": 120 * term, "to": 120 * term}


def test_a_budget_of_unlike_terms_is_known_to_within_the_cheapest(tmp_path: Path) -> None:
    """All seven projections: at 5M not every term of 8,193 can be paid for, so one of them is left."""
    seven = f"adapter.target_modules={SEVEN}"
    parameters = planned(tmp_path, "gsm8k", seven, "adapter.rank.parameters=5M")["totals"]["parameters"]
    assert parameters == {"from": 5_000_000 - 8192, "to": 5_000_000}
    all_terms = 32 * 16 * (4 * 8193 + 3 * 13_697)
    for total, expected in ((all_terms - 1, all_terms - 13_697), (all_terms, all_terms), (2 * all_terms, all_terms)):
        found = planned(tmp_path, "gsm8k", seven, f"adapter.rank.parameters={total}")["totals"]["parameters"]
        assert found == {"from": expected, "to": min(total, all_terms)}


def test_what_a_budget_comes_to_lies_in_the_planned_range_whatever_the_spectra(tmp_path: Path) -> None:
    import random

    from soka_cli.kron import Bid, KronShape, allocate

    draw = random.Random(0)
    for total in (300_000, 991_353, 2_000_000, 5_000_000):
        figures = planned(tmp_path, "gsm8k", f"adapter.target_modules={SEVEN}", f"adapter.rank.parameters={total}")
        bids = {}
        for kind in figures["kinds"]:
            for number in range(kind["modules"]):
                sigma = sorted((draw.expovariate(1.0) for _ in range(16)), reverse=True)
                bids[f"{kind['kind']}.{number}"] = Bid(KronShape(**kind["shape"]), sigma, [1e-9] * 16)
        found = allocate(bids, total)
        spent = sum(bids[name].shape.parameters(one.rank) for name, one in found.items())
        components = sum(one.rank for one in found.values())
        lora = sum(one.rank * (bids[name].shape.out_features + bids[name].shape.in_features) for name, one in found.items())
        for name, value in (("parameters", spent), ("components", components), ("lora_parameters", lora)):
            assert figures["totals"][name]["from"] <= value <= figures["totals"][name]["to"]


def test_a_budget_leaves_each_module_between_its_floor_and_what_the_others_leave(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", "adapter.rank={rule: budget, parameters: 0.6M, floor: 1}")
    assert [one["rank"] for one in figures["kinds"]] == [{"from": 1, "to": 1 + (600_000 // 8193 - 64)}] * 2


def test_a_budget_that_max_stops_is_said(tmp_path: Path) -> None:
    loaded = load_recipe("gsm8k", ["adapter.rank.parameters=50M"])
    outcome = plan(StageContext(loaded=loaded, layout=RunLayout(tmp_path / "run"), offline=True))
    assert outcome.figures["totals"]["parameters"] == {"from": 64 * 16 * 8193, "to": 64 * 16 * 8193}
    assert any("every module gets all the terms that max 16" in note for note in outcome.notes)


def test_a_budget_too_small_for_its_floors_is_refused_with_the_least_that_works(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        planned(tmp_path, "gsm8k", "adapter.rank={rule: budget, parameters: 524351, floor: 1}")
    assert (caught.value.exit_code, caught.value.where) == (ExitCode.USAGE, "adapter.rank.parameters")
    assert "the least that works is 524352" in caught.value.why
    assert planned(tmp_path, "gsm8k", "adapter.rank={rule: budget, parameters: 524352, floor: 1}")["totals"]["components"]["to"] == 64


def test_the_memory_of_a_budget_is_that_of_an_even_spread(tmp_path: Path) -> None:
    memory = planned(tmp_path, "gsm8k", f"adapter.rank={{rule: budget, parameters: {2 * 64 * 8193}}}")["memory"]
    fixed = planned(tmp_path, "gsm8k", "adapter.rank={rule: fixed, value: 2}")["memory"]
    assert memory["from"] == memory["to"] == fixed["to"]


def test_lora_of_no_more_parameters_is_set_beside(tmp_path: Path) -> None:
    assert planned(tmp_path, "gsm8k")["totals"]["lora_within"] == {"a_rank": 524_288, "rank": {"from": 1, "to": 1}}
    assert planned(tmp_path, "gsm8k", PAPERS_RULE)["totals"]["lora_within"]["rank"] == {"from": 1, "to": 16}
    loaded = load_recipe("gsm8k", ["adapter.rank.parameters=0.5M"])
    outcome = plan(StageContext(loaded=loaded, layout=RunLayout(tmp_path / "run"), offline=True))
    assert "LoRA of no more parameters on these modules: none, rank 1 takes 524,288" in outcome.notes


def test_the_variants_that_a_recipe_names_can_be_planned(tmp_path: Path) -> None:
    """Each command in the headings of the packaged recipes: its recipe and its overrides."""
    planned_ones = 0
    for recipe in ("gsm8k", "math", "mbpp"):
        path = find_recipe(recipe)
        assert path is not None
        for command in re.findall(r"^#.*(soka run --recipe .*)$", path.read_text(), re.MULTILINE):
            words = shlex.split(command)
            planned(tmp_path, words[3], *(word for word in words[4:] if "=" in word))
            planned_ones += 1
    assert planned_ones >= 10


def test_lora_on_queries_and_values_at_rank_2(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", "adapter.rank={rule: fixed, value: 2}")
    assert figures["totals"]["lora_parameters"] == {"from": 1_048_576, "to": 1_048_576}
    assert figures["totals"]["parameters"] == {"from": 2 * 64 * 8193, "to": 2 * 64 * 8193}


def test_lora_on_every_linear_module_at_rank_8(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", "adapter={method: lora, target_modules: all-linear, rank: {rule: fixed, value: 8}}")
    assert figures["totals"]["parameters"] == {"from": 19_988_480, "to": 19_988_480}
    assert figures["totals"]["modules"] == 7 * 32
    assert all(one["shape"] is None for one in figures["kinds"])


def test_one_term_on_all_seven_projections(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", f"adapter.target_modules={SEVEN}", "adapter.rank={rule: fixed, value: 1}")
    assert figures["totals"]["parameters"]["from"] == 2_363_616
    down = next(one for one in figures["kinds"] if one["kind"] == "down_proj")
    assert down["term_parameters"] == 13_697
    assert down["lora_parameters"]["from"] == 32 * 15_104


def test_a_low_rank_shape_has_room_for_few_terms_in_a_narrow_module(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", PAPERS_RULE, "adapter.shape={m: 1, n: 4}")
    assert figures["kinds"][0]["rank"] == {"from": 1, "to": 4}


def test_a_shape_pattern_holds_for_the_modules_that_it_names(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", r"adapter.shape_pattern.layers\.[01]\.self_attn\.v_proj={block: 32}")
    sizes = {(one["kind"], one["shape"]["p"]): one["modules"] for one in figures["kinds"]}
    assert sizes == {("q_proj", 64): 32, ("v_proj", 32): 2, ("v_proj", 64): 30}


def test_full_training_counts_the_whole_model_and_has_no_components(tmp_path: Path) -> None:
    figures = planned(tmp_path, "gsm8k", "adapter={method: full}")
    assert figures["kinds"] == []
    assert figures["totals"]["parameters"] == {"from": 6_738_415_616, "to": 6_738_415_616}
    memory = figures["memory"]["from"]
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == tuple(factor * 6_738_415_616 for factor in (4 + 2, 4, 8))


def test_the_memory_parts_are_counts_times_bytes(tmp_path: Path) -> None:
    memory = planned(tmp_path, "gsm8k", PAPERS_RULE)["memory"]
    trained = 64 * 16 * 8193
    assert memory["to"]["weights"] == 2 * 6_738_415_616
    assert memory["to"]["adapter"] == 4 * 2 * trained
    assert memory["to"]["gradients"] == 4 * trained
    assert memory["to"]["optimizer"] == 8 * trained
    assert memory["to"]["total"] == sum(value for name, value in memory["to"].items() if name != "total")


def test_a_micro_batch_twice_as_large_keeps_twice_the_activations_and_no_more_weights(tmp_path: Path) -> None:
    small = planned(tmp_path, "gsm8k")["memory"]["to"]
    large = planned(tmp_path, "gsm8k", "train.micro_batch_size=8")["memory"]["to"]
    assert large["activations"] == 2 * small["activations"]
    assert large["logits"] == 2 * small["logits"]
    for name in ("weights", "adapter", "optimizer"):
        assert large[name] == small[name]


def test_steps_follow_from_rows_batch_and_epochs(tmp_path: Path) -> None:
    training = planned(tmp_path, "gsm8k", "train.epochs=2")["training"]
    assert (training["rows"], training["steps"]) == (100_000, 1563)  # full batches: the second pass begins inside one
    assert training["tokens"] is None
    assert training["tokens_at_most"] == 1563 * 128 * 512


def test_rows_behind_a_filter_are_not_guessed(tmp_path: Path) -> None:
    training = planned(tmp_path, "mbpp")["training"]
    assert (training["rows"], training["steps"]) == (None, None)


def test_local_data_and_tokenizer_give_the_exact_tokens_of_training(tmp_path: Path, llama_folder: Path) -> None:
    from soka_cli.data.encode import encode_rows
    from soka_cli.data.load import load_rows
    from soka_cli.models.base import load_tokenizer

    rows = builders.gsm8k_file(tmp_path)
    overrides = (f"model.name={llama_folder}", f"data.train.path={rows}", "train.epochs=2", "train.batch_size=8", "data.max_length=128")
    training = planned(tmp_path, "gsm8k-train", *overrides)["training"]
    recipe = load_recipe("gsm8k-train", overrides).recipe
    encoded, ledger = encode_rows(
        load_tokenizer(recipe.model), load_rows(str(rows)), source=recipe.data.sources[0], template=recipe.data.template, max_length=128
    )
    assert training["rows"] == len(encoded)
    assert training["tokens"] == 2 * ledger.tokens
    assert training["steps"] == 2 * -(-len(encoded) // 8)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("train.steps=7",), 7),
        (("train.batch_size=8", "train.micro_batch_size=8", "train.epochs=1.5"), 5),  # 36 rows
        (("train.batch_size=8", "train.micro_batch_size=8", "train.epochs=3"), 9),
        (("train.batch_size=10", "train.micro_batch_size=5", "train.epochs=1"), 3),  # the last batch is filled up
    ],
)
def test_planned_steps_are_those_that_training_takes(overrides: tuple[str, ...], steps: int, tmp_path: Path, llama_folder: Path) -> None:
    from soka_cli.stages.train import train

    rows = builders.gsm8k_file(tmp_path)
    own = (f"model.name={llama_folder}", f"data.train.path={rows}", "adapter.rank={rule: fixed, value: 1}", "train.precision=fp32")
    figures = planned(tmp_path, "gsm8k-train", *own, *overrides)["training"]
    loaded = load_recipe("gsm8k-train", (*own, *overrides))
    trained = train(StageContext(loaded=loaded, layout=RunLayout(tmp_path / "trained"), offline=True, device="cpu"))
    assert figures["steps"] == trained.figures["steps"] == steps
    assert figures["rows"] == trained.figures["rows"] == 24


def test_a_llama_worked_out_from_its_numbers_is_the_one_that_transformers_builds(llama_folder: Path) -> None:
    from soka_cli.models.skeleton import skeleton, targets

    model = skeleton(llama_folder)
    for choice in (["q_proj", "down_proj"], "all-linear", r".*\.[kv]_proj", ["lm_head", "layers.1.mlp.up_proj"]):
        worked_out = dimensions(ModelSection(name=str(llama_folder)), choice)
        built = targets(model, choice)
        assert [(one.name, one.out_features, one.in_features) for one in worked_out.targets] == [
            (one.name, one.out_features, one.in_features) for one in built.values()
        ]
        assert worked_out.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_packaged_table_is_what_transformers_builds() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    kinds = {"LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM), "MistralForCausalLM": (MistralConfig, MistralForCausalLM)}
    assert len(shape_table()) == 5
    for name, facts in shape_table().items():
        config, built = kinds[facts["architectures"][0]]
        with torch.device("meta"):
            model = built(config(**{**facts, "num_hidden_layers": 2}))
        two_layers = dimensions_of({**facts, "num_hidden_layers": 2})
        assert two_layers.parameters == sum(parameter.numel() for parameter in model.parameters()), name


def dimensions_of(facts: dict[str, Any]) -> Any:
    from soka_cli.stages.dimensions import of_llama

    return of_llama(facts, "all-linear", source="test")


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "opt"])
def test_other_models_are_planned_from_a_skeleton(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = builders.tiny_model(kind)
    model.config.save_pretrained(folder)
    figures = planned(
        tmp_path, "gsm8k", f"model.name={folder}", "adapter.target_modules=all-linear", "adapter.rank={rule: fixed, value: 1}"
    )
    assert figures["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert figures["totals"]["modules"] > 0


def test_targets_that_match_nothing_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        planned(tmp_path, "gsm8k", "adapter.target_modules=[c_attn]")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head" in caught.value.why


def test_a_target_that_matches_nothing_beside_one_that_does_is_said(tmp_path: Path) -> None:
    loaded = load_recipe("gsm8k", ["adapter.target_modules=[q_proj, c_attn]"])
    outcome = plan(StageContext(loaded=loaded, layout=RunLayout(tmp_path / "run"), offline=True))
    assert "c_attn in target_modules matches nothing" in outcome.notes


def test_a_shape_that_does_not_divide_names_the_module_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        planned(tmp_path, "gsm8k", "adapter.shape={block: 48}")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "model.layers.0.self_attn.q_proj" in caught.value.what
    assert "32 and 64" in caught.value.why


def test_a_model_that_is_nowhere_is_refused_with_the_packaged_sizes(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        planned(tmp_path, "gsm8k", "model.name=acme/unknown")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert LLAMA in caught.value.why


def test_the_next_command_repeats_recipe_run_and_overrides(tmp_path: Path) -> None:
    loaded = load_recipe("gsm8k", ["train.lr=1e-4", "adapter.rank={rule: fixed, value: 2}"])
    outcome = plan(StageContext(loaded=loaded, layout=RunLayout(tmp_path / "a run"), offline=True))
    words = shlex.split(outcome.next_commands[0])
    assert words[:3] == ["soka", "run", "--recipe"]
    assert words[4:6] == ["--run", str(tmp_path / "a run")]
    assert set(words[6:]) == {"train.lr=1e-4", "adapter.rank={rule: fixed, value: 2}"}
    assert load_recipe(words[3], words[6:]).recipe == loaded.recipe


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(SokaError) as caught:
        planned(tmp_path, "gsm8k")
    assert caught.value.exit_code == ExitCode.RUN


def test_planning_a_packaged_recipe_loads_no_transformers() -> None:
    heavy = ("transformers", "peft", "datasets")
    code = f"import sys; from soka_cli.stages.plan import plan; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
