"""What a run takes beside memory, and what each of several GPUs holds: formulas against counts made in another way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.stages.baselines import lokr_parameters
from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import Dimensions, dimensions, of_llama
from soka_cli.stages.effort import disk, evaluation, measured_speed, operations_a_token
from soka_cli.stages.memory import estimate
from soka_cli.stages.per_device import replicated, sharded
from soka_cli.stages.plan import plan
from soka_cli.stages.sizes import AdapterSizes, adapter_sizes, planned_modules
from tests import builders
from tests.stages.test_memory import FACTS

QV = "{target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 2}}"
LORA = "{method: lora, target_modules: all-linear, rank: {rule: fixed, value: 8}}"


def sized(*overrides: str, facts: dict[str, Any] = FACTS) -> tuple[Any, Dimensions, AdapterSizes]:
    recipe = load_recipe("gsm8k", overrides).recipe
    base = of_llama(facts, recipe.adapter.target_modules, source="test")
    return recipe, base, adapter_sizes(recipe.adapter, planned_modules(recipe.adapter, base.targets), most=True)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("adapter", [QV, LORA, "{method: full}"])
def test_operations_are_those_that_torch_counts(adapter: str, again: bool) -> None:
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from soka_cli.adapter.methods import peft_config

    recipe, base, sizes = sized(
        f"adapter={adapter}",
        "data.max_length=128",
        "train.micro_batch_size=2",
        "train.precision=fp32",
        f"train.activation_checkpointing={again}".lower(),
    )
    model: Any = LlamaForCausalLM(LlamaConfig(**FACTS))
    if recipe.adapter.method != "full":
        model = get_peft_model(model, peft_config(recipe.adapter, seed=0))
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(256).reshape(2, 128) % FACTS["vocab_size"]
    with FlopCounterMode(display=False) as counter:
        model.train()(input_ids=ids, labels=ids).loss.backward()
    attention = (4 if again else 3) * 2 * base.layers * base.attention * 128  # torch counts no operation of a CPU's fused attention
    assert operations_a_token(recipe, base, sizes) == pytest.approx(
        counter.get_total_flops() / 256 + attention, rel=0.12 if again else 0.05
    )  # a block is computed again only as far as is needed


@pytest.mark.parametrize("world", [1, 2, 8])
def test_shares_of_all_gpus_add_up_to_what_one_holds(world: int) -> None:
    recipe, base, sizes = sized(f"adapter={QV}", "train.batch_size=128", "train.micro_batch_size=4")
    memory = estimate(recipe, base, sizes, world=world)
    share = sharded(memory, recipe, base, sizes, world)
    kept = 4 * sizes.kept
    assert 0 <= world * share.weights - memory.weights < world
    assert 0 <= world * (share.adapter - kept) - (memory.adapter - kept) < world
    assert 0 <= world * share.optimizer - memory.optimizer < world
    assert (share.activations, share.logits) == (memory.activations, memory.logits)
    alike = replicated(memory, sizes.trained, world)
    assert alike.total - memory.total == (4 * sizes.trained if world > 1 else 0)
    if world == 1:
        assert share == memory == alike


def test_a_batch_that_the_gpus_take_at_once_needs_no_room_for_gradients_beside_activations() -> None:
    recipe, base, sizes = sized(f"adapter={QV}", "train.batch_size=32", "train.micro_batch_size=4")
    assert estimate(recipe, base, sizes, world=4).gradients == 4 * sizes.trained
    assert estimate(recipe, base, sizes, world=8).gradients == 0


def test_where_gradients_are_larger_than_activations_the_peak_is_theirs() -> None:
    recipe, base, sizes = sized("adapter={method: full}", "train.batch_size=1", "train.micro_batch_size=1", "data.max_length=1")
    memory = estimate(recipe, base, sizes)
    assert memory.gradients + memory.activations + memory.logits == 4 * base.parameters


def test_13b_fits_cards_of_24_gb_by_fsdp2_and_not_by_ddp() -> None:
    options = ("model.name=meta-llama/Llama-2-13b-hf", "model.revision=null", "train.micro_batch_size=1", "data.max_length=256")
    recipe = load_recipe("gsm8k", options).recipe
    base = dimensions(recipe.model, recipe.adapter.target_modules)
    sizes = adapter_sizes(recipe.adapter, planned_modules(recipe.adapter, base.targets), most=True)
    memory = estimate(recipe, base, sizes, world=4)
    assert replicated(memory, sizes.trained, 4).total > 24e9 > sharded(memory, recipe, base, sizes, 4).total


def test_the_disk_holds_one_checkpoint_more_than_are_kept(tmp_path: Path) -> None:
    recipe, base, sizes = sized(f"adapter={QV}", "train.keep_checkpoints=3")
    room = disk(recipe, base, sizes)
    assert room.checkpoint == 4 * (3 * sizes.trained + sizes.kept) and room.checkpoints == 4 * room.checkpoint
    assert room.merged == 2 * base.parameters
    assert room.total == room.decompose + room.checkpoints + room.adapter + room.merged
    best = disk(*sized(f"adapter={QV}", "train.keep_checkpoints=3", "train.keep=best", "data.validation={fraction: 0.1}"))
    assert best.checkpoints == 5 * room.checkpoint
    full = disk(*sized("adapter={method: full}"))
    assert full.decompose == full.merged == 0 and full.adapter == 2 * base.parameters


def test_an_evaluation_counts_the_items_of_a_file_up_to_the_limit(tmp_path: Path) -> None:
    path = builders.gsm8k_file(tmp_path, 9)
    for limit, items in (("null", 9), (5, 5), (50, 9)):
        recipe, base, _ = sized(f"eval=[{{task: gsm8k, path: {path}, limit: {limit}, max_new_tokens: 10, batch_size: 4}}]")
        found = evaluation(recipe.eval[0], base, 2)
        assert (found["items"], found["tokens_at_most"]) == (items, 10 * items)
        assert found["operations_at_most"] == 3 * 2 * base.multiplied * 10 * items
        assert found["cache_bytes"] == 2 * 4 * 64 * 2 * 4 * 10  # keys and values, blocks, width of the key heads, bytes, rows, tokens


def test_an_evaluation_of_unknown_size_is_unknown() -> None:
    recipe, base, _ = sized("eval=[{task: gsm8k, path: someone/else}]")
    assert evaluation(recipe.eval[0], base, 2)["items"] is evaluation(recipe.eval[0], base, 2)["operations_at_most"] is None


def test_time_follows_from_a_given_speed_or_from_the_runs_own(tmp_path: Path) -> None:
    context = StageContext(load_recipe("gsm8k"), RunLayout(tmp_path / "run"), offline=True)
    assert plan(context).figures["effort"]["seconds"] is None
    given = plan(context, tokens_per_s=1000.0).figures["effort"]
    assert (given["speed_from"], given["seconds"]) == ("given", pytest.approx(plan(context).figures["training"]["tokens_at_most"] / 1000))
    context.layout.metrics.parent.mkdir(parents=True)
    context.layout.metrics.write_text("".join(json.dumps({"step": step, "tokens_per_s": 100.0 * step}) + "\n" for step in range(1, 6)))
    measured = plan(context).figures["effort"]
    assert (measured["speed_from"], measured["tokens_per_s"]) == ("measured", 300.0)
    context.layout.metrics.write_text('{"step": 1, "tokens_')
    assert measured_speed(context.layout.metrics) is None


@pytest.mark.parametrize(("out_features", "in_features", "rank"), [(32, 48, 2), (144, 288, 9), (288, 288, 4), (17, 40, 100)])
def test_lokr_is_counted_as_peft_builds_it(out_features: int, in_features: int, rank: int) -> None:
    from peft import LoKrConfig, get_peft_model
    from torch import nn

    from soka_cli.stages.dimensions import LinearModule

    model = get_peft_model(nn.Sequential(nn.Linear(in_features, out_features)), LoKrConfig(target_modules=["0"], r=rank))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert lokr_parameters(LinearModule("0", out_features, in_features), rank) == trained


def test_every_process_count_is_planned_in_the_same_fields(tmp_path: Path) -> None:
    context = StageContext(load_recipe("gsm8k"), RunLayout(tmp_path / "run"), offline=True)
    for processes in (1, 8):
        outcome = plan(context, processes=processes)
        per_gpu = outcome.figures["per_gpu"]
        assert (
            per_gpu["processes"] == processes and per_gpu["ddp"].keys() == per_gpu["fsdp2"].keys() == outcome.figures["memory"]["to"].keys()
        )
        assert any("of 8 GPUs" in table.title for table in outcome.tables) is (processes == 8)


def test_rows_that_will_be_cut_are_told_or_said_to_be_unknown(tmp_path: Path) -> None:
    remote = plan(StageContext(load_recipe("gsm8k"), RunLayout(tmp_path / "run"), offline=True))
    assert any("rows that will be cut: not known" in note for note in remote.notes)
    mapping = builders.recipe_mapping(builders.tiny_model_folder(tmp_path / "base"), builders.gsm8k_file(tmp_path))
    local = plan(StageContext(load_recipe(builders.write_recipe(tmp_path / "r.yaml", mapping)), RunLayout(tmp_path / "run2"), offline=True))
    assert not any("not known" in note for note in local.notes)
