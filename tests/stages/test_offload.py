"""A run whose base lies partly on the disk: the same files as one with the base in memory, stage by stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import ModelSection, Recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.generate import generate
from soka_cli.stages.launch import Worker
from soka_cli.stages.memory import bounded
from soka_cli.stages.merge import merge
from soka_cli.stages.plan import bounds_note
from soka_cli.stages.train import train
from tests import builders
from tests.stages.pipeline import context_for, recipe_folder

ON_DISK = "model.max_memory.cpu=70000"  # the embedding and little more
APART = "adapter.product=factored"  # SoKA's update beside the base's product; otherwise the two are rounded together where W is at hand
CHECKPOINTED = "train.activation_checkpointing=true"


def trained(folder: Path, *overrides: str, run: str) -> RunLayout:
    context = context_for(folder, CHECKPOINTED, "train.steps=3", *overrides, run=run)
    train(context)
    return context.layout


def losses(layout: RunLayout) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in read_lines(layout.metrics)]


@pytest.mark.parametrize("method", [APART, "adapter.method=lora"])
def test_training_takes_the_same_steps_bit_for_bit(method: str, tmp_path: Path, llama_folder: Path) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    whole, away = (trained(folder, method, *more, run=run) for run, more in (("whole", ()), ("away", (ON_DISK,))))
    assert losses(whole) == losses(away) and len(losses(away)) == 3
    tensors, same = load_file(whole.adapter_weights), load_file(away.adapter_weights)
    assert tensors.keys() == same.keys() and all(torch.equal(tensors[name], same[name]) for name in tensors)


def test_soka_takes_the_same_steps_up_to_rounding_where_it_would_put_the_update_into_the_weights(
    tmp_path: Path, llama_folder: Path
) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    whole, away = (losses(trained(folder, *more, run=run)) for run, more in (("whole", ()), ("away", (ON_DISK,))))
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(away), rtol=1e-5, atol=1e-6)


def test_mixed_precision_takes_the_same_steps(tmp_path: Path, llama_folder: Path) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    mixed = ("train.precision=bf16", "model.dtype=bfloat16")
    whole = trained(folder, *mixed, run="whole")
    assert losses(whole) == losses(trained(folder, *mixed, "model.max_memory.cpu=40000", run="away"))


@pytest.mark.slow
def test_a_run_goes_on_with_other_bounds_and_without_any(tmp_path: Path, llama_folder: Path) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    for steps, bounds in ((2, ON_DISK), (3, "model.max_memory.cpu=90000"), (4, "model.max_memory=null")):
        stopped = trained(folder, f"train.steps={steps}", "train.schedule=constant", "train.warmup=0", APART, bounds, run="stopped")
    straight = trained(folder, "train.steps=4", "train.schedule=constant", "train.warmup=0", APART, run="straight")
    assert losses(stopped) == losses(straight) and len(losses(straight)) == 4


@pytest.mark.slow
def test_answers_and_the_merged_model_are_those_of_a_run_in_memory(tmp_path: Path, llama_folder: Path) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    found: dict[str, Any] = {}
    for run, more in (("whole", ("eval.0.batching=padded",)), ("away", ("eval.0.batching=padded", ON_DISK))):
        context = context_for(folder, CHECKPOINTED, APART, *more, run=run)
        train(context)
        merge(context)
        evaluate(context)
        layout = context.layout
        found[run] = [
            *(layout.predictions("gsm8k-plain", kind).read_bytes() for kind in ("base", "adapter", "merged")),
            (layout.merged_model / "model.safetensors").read_bytes(),
            layout.parity.read_bytes(),
            generate(context, ["Ann has 3 pens."], max_new_tokens=4).figures,
        ]
    assert found["whole"] == found["away"]


def test_bounds_are_no_input_of_an_evaluation(tmp_path: Path, llama_folder: Path) -> None:
    folder = recipe_folder(tmp_path, llama_folder)
    evaluate(context_for(folder))
    assert evaluate(context_for(folder, CHECKPOINTED, ON_DISK)).status == "already done"


def test_several_processes_are_refused() -> None:
    model = ModelSection(name="any", max_memory={"cpu": "1GB"})  # type: ignore[arg-type]
    Worker().require_alone(model)
    with pytest.raises(SokaError, match="2 processes") as caught:
        Worker(count=2).require_alone(model)
    assert caught.value.exit_code is ExitCode.USAGE


def test_the_plan_counts_no_more_weights_on_the_device_than_the_bounds_let_lie_there(llama_folder: Path, gsm8k_file: Path) -> None:
    def held(**bounds: Any) -> int:
        mapping = builders.recipe_mapping(llama_folder, gsm8k_file, train={"activation_checkpointing": True})
        mapping["model"] |= {"max_memory": bounds or None}
        return bounded(Recipe.model_validate(mapping), 10**6)

    assert held() == 10**6 and held(gpu=1000) == 1000 and held(gpu=10**7) == 10**6 and held(gpu=7, cpu=9) == 7 and held(cpu=9) == 9


def test_the_plan_says_how_much_lies_where() -> None:
    note = bounds_note(ModelSection(name="any", max_memory={"gpu": "8GB", "cpu": "4G"}), 7 * 10**9)  # type: ignore[arg-type]
    assert "of 14.00 GB" in note and "8.00 GB on a GPU, at most 4.00 GB in main memory, 2.00 GB on the disk" in note
