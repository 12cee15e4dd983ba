"""match_parameters: the rank whose count is nearest to what was asked, and both counts said."""

import random
from pathlib import Path
from typing import Any

import pytest
from peft import LoKrConfig, get_peft_model
from torch import nn

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.baselines import lokr_parameters
from soka_cli.stages.dimensions import LinearModule
from soka_cli.stages.matching import nearest_rank, settled
from soka_cli.stages.plan import plan
from soka_cli.stages.train import train
from tests import builders

SIZES = {"q_proj": (32, 32), "v_proj": (16, 32)}  # of the tiny Llama, two layers each
A_RANK = 2 * sum(out + inner for out, inner in SIZES.values())


def context_of(folder: Path, model: Path | str, **adapter: Any) -> Any:
    mapping = builders.recipe_mapping(model, builders.gsm8k_file(folder), train={"steps": 1})
    mapping["adapter"] = {"method": "lora", "target_modules": ["q_proj", "v_proj"]} | adapter
    return builders.stage_context(folder, mapping)


@pytest.mark.parametrize(("wanted", "rank"), [(1, 1), (A_RANK, 1), (3 * A_RANK + A_RANK // 2, 3), (3 * A_RANK + A_RANK // 2 + 1, 4)])
def test_lora_takes_the_nearest_rank_the_smaller_of_two(wanted: int, rank: int, tmp_path: Path, llama_folder: Path) -> None:
    _, match = settled(context_of(tmp_path, llama_folder, match_parameters=wanted))
    assert match is not None and (match.rank, match.parameters) == (rank, rank * A_RANK)


def test_training_and_plan_take_the_rank_and_say_both_counts(tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder, match_parameters="1k")
    said = "match_parameters: lora at rank 4 trains 896 parameters for 1,000 (-10.4%)"
    assert said in plan(context).notes
    figures = train(context).figures
    assert said in context.reporter.messages
    assert figures["trainable_parameters"] == 896 and figures["match"]["wanted"] == 1000


@pytest.mark.parametrize(
    ("other", "rank", "wanted"),
    [
        ("lora", {"rule": "fixed", "value": 3}, 3 * A_RANK),
        ("dora", {"rule": "fixed", "value": 3}, 3 * A_RANK + 2 * (32 + 16)),
        ("soka", {"rule": "fixed", "value": 2}, 2 * 2 * ((4 * 4 + 8 * 8 + 1) + (4 * 4 + 4 * 8 + 1))),
        ("soka", {"rule": "budget", "parameters": 600}, None),
    ],
)
def test_a_methods_name_stands_for_what_it_would_train_here(
    other: str, rank: dict[str, Any], wanted: int | None, tmp_path: Path, llama_folder: Path
) -> None:
    _, match = settled(context_of(tmp_path, llama_folder, method="lokr", match_parameters=other, rank=rank))
    own = context_of(tmp_path, llama_folder, method=other, rank=rank)
    assert match is not None
    assert match.wanted == plan(own).figures["totals"]["parameters"]["to"]
    if wanted is not None and other != "soka":
        assert match.wanted == wanted


def test_a_recipe_for_soka_becomes_its_lora_baseline_by_the_method_and_the_match(tmp_path: Path, llama_folder: Path) -> None:
    soka = {"shape": "balanced", "rank": {"rule": "budget", "parameters": 600}, "init": "weight", "sigma": "split"}
    context = context_of(tmp_path, llama_folder, method="lora", match_parameters="soka", **soka)
    assert train(context).figures["trainable_parameters"] % A_RANK == 0


def test_a_method_of_peft_is_matched_by_its_rank(tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder, method="peft", config={"peft_type": "LOHA"}, match_parameters=4 * A_RANK)
    assert plan(context).figures["totals"]["parameters"]["to"] == 4 * A_RANK  # LoHa has twice LoRA's at its rank 2


def test_a_method_without_a_rank_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    with pytest.raises(SokaError) as caught:
        settled(context_of(tmp_path, llama_folder, method="peft", config={"peft_type": "BOFT"}, match_parameters=100))
    assert caught.value.exit_code is ExitCode.USAGE and "has no rank r" in caught.value.what


def test_the_papers_size_on_llama_2_is_lora_at_rank_two(tmp_path: Path) -> None:
    _, match = settled(context_of(tmp_path, "meta-llama/Llama-2-7b-hf", match_parameters="0.99M"))
    assert match is not None and (match.rank, match.parameters) == (2, 1_048_576)


def test_no_rank_of_lokr_comes_nearer() -> None:
    draw = random.Random(0)
    for _ in range(100):
        module, wanted = LinearModule("one", draw.randint(1, 64), draw.randint(1, 64)), draw.randint(1, 5000)
        counts = [lokr_parameters(module, rank) for rank in range(1, 129)]
        found = nearest_rank(lambda rank, module=module: lokr_parameters(module, rank), wanted, exhaustive=True)
        assert abs(counts[found - 1] - wanted) == min(abs(count - wanted) for count in counts)


@pytest.mark.parametrize("factor", [-1, 2, 3, 5])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("out", "inner"), [(12, 12), (16, 32), (7, 30), (36, 10)])
def test_lokrs_formula_counts_what_peft_makes(out: int, inner: int, factor: int, both: bool) -> None:
    for rank in (1, 2, 3, 20):
        config = LoKrConfig(target_modules=["0"], r=rank, decompose_factor=factor, decompose_both=both)
        model = get_peft_model(nn.Sequential(nn.Linear(inner, out, bias=False)), config)
        made = sum(one.numel() for one in model.parameters() if one.requires_grad)
        assert lokr_parameters(LinearModule("0", out, inner), rank, factor=factor, both=both) == made
