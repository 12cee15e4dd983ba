"""Every baseline by one line: trained, saved, resumed, evaluated and merged through the same path."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from soka_cli.data.batch import Collator
from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.merge import merge
from soka_cli.stages.plan import plan
from soka_cli.stages.train import train
from soka_cli.stages.trainer import RunTrainer
from tests import builders
from tests.stages.test_train import loss_of

RANK = {"rule": "fixed", "value": 2}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lokr": {"method": "lokr", "rank": RANK},
    "lokr of two halves": {"method": "lokr", "rank": RANK, "config": {"decompose_both": True, "decompose_factor": 2}},
    "dora": {"method": "dora", "rank": RANK},
    "rslora": {"method": "lora", "rank": RANK, "alpha": 8, "config": {"use_rslora": True}},
    "lora with a whole module": {"method": "lora", "rank": RANK, "config": {"modules_to_save": ["lm_head"]}},
    "loha": {"method": "peft", "config": {"peft_type": "loha", "r": 2}},
    "ia3": {"method": "peft", "config": {"peft_type": "IA3", "feedforward_modules": []}},
    "vera": {"method": "peft", "config": {"peft_type": "VERA", "r": 4}},
    "oft": {"method": "peft", "config": {"peft_type": "OFT", "oft_block_size": 4, "r": 0}},
    "norms": {"method": "peft", "target_modules": ["input_layernorm"], "config": {"peft_type": "LN_TUNING"}},
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def context_of(folder: Path, model: Path, adapter: dict[str, Any], /, *, run: str = "run", **sections: Any) -> Any:
    data, test = builders.gsm8k_file(folder), builders.gsm8k_file(folder, 2, "test.jsonl")
    held_out = builders.gsm8k_file(folder, 5, "held.jsonl")
    mapping = builders.recipe_mapping(model, data, **sections)
    mapping["adapter"] = adapter if adapter["method"] == "full" else {"target_modules": ["q_proj", "v_proj"]} | adapter
    mapping["data"]["validation"] = {"path": str(held_out)}
    mapping["eval"] = [{"task": "gsm8k", "path": str(test), "max_new_tokens": 3}]
    return builders.stage_context(folder, mapping, run=run)


def refusal(folder: Path, model: Path, adapter: dict[str, Any]) -> SokaError:
    with pytest.raises(SokaError) as caught:
        train(context_of(folder, model, adapter))
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Callable[[str], tuple[Any, dict[str, Any]]]:
    """The context and figures of a training of each adapter, which is made once."""

    @cache
    def of(name: str) -> tuple[Any, dict[str, Any]]:
        context = context_of(tmp_path_factory.mktemp("methods"), llama_folder, ADAPTERS[name])
        return context, train(context).figures

    return of


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_baselines_saved_result_has_the_reported_eval_loss(name: str, trained: Any, llama_folder: Path) -> None:
    context, figures = trained(name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), context.layout.adapter).eval()
    assert figures["last_eval_loss"] == pytest.approx(loss_of(model, context.layout.root.parent / "held.jsonl"), abs=2e-6)
    assert figures["last_eval_loss"] < figures["first_eval_loss"] - 1e-4


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_baseline_merges_to_the_model_that_was_trained(name: str, trained: Any) -> None:
    context, figures = trained(name)
    merge(context)
    merged = AutoModelForCausalLM.from_pretrained(context.layout.merged_model, dtype=torch.float32).eval()
    assert figures["last_eval_loss"] == pytest.approx(loss_of(merged, context.layout.root.parent / "held.jsonl"), abs=2e-6)


@pytest.mark.parametrize("name", ["lokr", "norms"])
def test_a_baseline_is_evaluated(name: str, trained: Any) -> None:
    assert evaluate(trained(name)[0], ["adapter"]).status == "done"


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_the_plans_count_is_what_training_counts(name: str, trained: Any) -> None:
    context, figures = trained(name)
    count = figures["trainable_parameters"]
    assert plan(context).figures["totals"]["parameters"] == {"from": count, "to": count}


@pytest.mark.parametrize("name", ["lokr", "dora", "vera", "lora with a whole module"])
def test_a_killed_baseline_ends_bit_equal(name: str, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = context_of(tmp_path, llama_folder, ADAPTERS[name], run="undisturbed")
    train(undisturbed)
    context = context_of(tmp_path, llama_folder, ADAPTERS[name])
    original = RunTrainer.training_step

    def deadly(self: RunTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            raise Killed
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunTrainer, "training_step", deadly)
        train(context)
    train(context)
    assert "Going on from checkpoint-2 of 4 steps." in context.reporter.messages
    assert context.layout.adapter_weights.read_bytes() == undisturbed.layout.adapter_weights.read_bytes()


@pytest.mark.parametrize("name", ["lokr", "dora", "loha", "ia3"])
def test_a_baselines_tensors_are_fp32_over_a_bfloat16_base(name: str, tmp_path: Path, llama_folder: Path) -> None:
    options = {"model": {"dtype": "bfloat16"}, "train": {"precision": "bf16", "steps": 2}}
    context = context_of(tmp_path, llama_folder, ADAPTERS[name], **options)
    train(context)
    assert {tensor.dtype for tensor in load_file(context.layout.adapter_weights).values()} == {torch.float32}


def test_all_methods_read_the_same_rows_in_the_same_order_at_the_same_rates(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate, read, seen = Collator.__call__, [], {}
    monkeypatch.setattr(Collator, "__call__", lambda self, rows: read.append([row["row"] for row in rows]) or collate(self, rows))
    methods = {method: {"method": method, "rank": RANK} for method in ("soka", "lora", "pissa")} | {"full": {"method": "full"}}
    for name, adapter in (methods | {name: ADAPTERS[name] for name in ("lokr", "dora", "loha")}).items():
        read.clear()
        context = context_of(tmp_path, llama_folder, adapter, run=name)
        train(context)
        rows = [json.loads(line) for line in context.layout.metrics.read_text().splitlines()]
        seen[name] = [list(read), *([row[field] for row in rows] for field in ("step", "epoch", "tokens", "lr"))]
        first = seen.setdefault("first loss", rows[0]["loss"])
        assert rows[0]["loss"] == pytest.approx(first, rel=1e-6)  # every start is the base, PiSSA's up to rounding
    del seen["first loss"]
    assert len(seen) == 7 and all(found == seen["soka"] for found in seen.values())


# ---- configurations that do not fit


def test_an_unknown_field_is_refused_with_pefts_own_names(tmp_path: Path, llama_folder: Path) -> None:
    error = refusal(tmp_path, llama_folder, {"method": "lokr", "rank": RANK, "config": {"decompose_faktor": 2}})
    assert "LoKrConfig has no field decompose_faktor; did you mean decompose_factor?" in error.what
    assert "module_dropout" in error.what and error.where == "adapter.config.decompose_faktor"


@pytest.mark.parametrize(("field", "option"), [("r", "adapter.rank.value"), ("lora_alpha", "adapter.alpha"), ("use_dora", "method: dora")])
def test_a_field_that_the_recipe_says_itself_is_refused(field: str, option: str, tmp_path: Path, llama_folder: Path) -> None:
    error = refusal(tmp_path, llama_folder, {"method": "lora", "rank": RANK, "config": {field: 4}})
    assert option in error.hint and field in error.what


@pytest.mark.parametrize(
    ("kind", "words"),
    [("ADALORA", "rank allocator"), ("PREFIX_TUNING", "a prompt rather than weights"), ("LORAA", "did you mean LORA?")],
)
def test_a_method_of_peft_that_does_not_fit_is_refused(kind: str, words: str, tmp_path: Path, llama_folder: Path) -> None:
    error = refusal(tmp_path, llama_folder, {"method": "peft", "config": {"peft_type": kind}})
    assert words in error.what + error.why


@pytest.mark.parametrize("method", [{"method": "lora", "rank": RANK}, {"method": "peft"}])
def test_a_start_that_rewrites_the_base_is_refused(method: dict[str, Any], tmp_path: Path, llama_folder: Path) -> None:
    config = {"init_lora_weights": "olora"} | ({"peft_type": "LORA"} if method["method"] == "peft" else {})
    assert "rewrites the base" in refusal(tmp_path, llama_folder, method | {"config": config}).what


def test_a_value_that_peft_refuses_is_told_in_its_words(tmp_path: Path, llama_folder: Path) -> None:
    assert "divisible" in refusal(tmp_path, llama_folder, {"method": "peft", "config": {"peft_type": "ROAD", "group_size": 7}}).why


def test_a_method_without_a_merge_says_so_and_its_run_goes_on(tmp_path: Path, llama_folder: Path) -> None:
    from soka_cli.stages.run import run

    context = context_of(tmp_path, llama_folder, {"method": "peft", "config": {"peft_type": "LILY", "r": 2}}, train={"steps": 1})
    outcome = run(context)
    assert [one["stage"] for one in outcome.figures["stages"]][-1] == "report"
    assert any("cannot merge an adapter of method LILY" in warning for warning in context.reporter.warnings)


# ---- sigma folded into the factors


def test_split_sigma_starts_as_the_base_with_the_same_files_and_count(tmp_path: Path, llama_folder: Path) -> None:
    outcomes, tensors = {}, {}
    for sigma in ("separate", "split"):
        context = context_of(tmp_path, llama_folder, {"method": "soka", "rank": RANK, "sigma": sigma}, run=sigma)
        outcomes[sigma] = train(context).figures
        tensors[sigma] = load_file(context.layout.adapter_weights)
    assert outcomes["separate"]["trainable_parameters"] == outcomes["split"]["trainable_parameters"]
    assert outcomes["separate"]["first_loss"] == outcomes["split"]["first_loss"]
    assert outcomes["separate"]["last_loss"] != outcomes["split"]["last_loss"]
    assert tensors["separate"].keys() == tensors["split"].keys()
    for name, tensor in tensors["split"].items():
        if name.endswith("start_sigma"):
            assert torch.equal(tensor, torch.ones_like(tensor))
            for part in ("U", "V"):
                norms = tensors["split"][name.replace("start_sigma", f"start_{part}")].flatten(1).norm(dim=1)
                torch.testing.assert_close(norms, tensors["separate"][name].sqrt())


def test_factors_of_rms_one_start_as_the_base_with_the_same_files_and_count(tmp_path: Path, llama_folder: Path) -> None:
    outcomes, tensors = {}, {}
    for sigma in ("separate", "rms"):
        context = context_of(tmp_path, llama_folder, {"method": "soka", "rank": RANK, "sigma": sigma}, run=sigma, train={"steps": 1})
        outcomes[sigma] = train(context).figures
        tensors[sigma] = load_file(context.layout.adapter_weights)
    assert outcomes["separate"]["trainable_parameters"] == outcomes["rms"]["trainable_parameters"]
    assert outcomes["separate"]["first_loss"] == outcomes["rms"]["first_loss"]
    for name in (name for name in tensors["rms"] if name.endswith("start_sigma")):
        scale = 1.0
        for part in ("start_U", "start_V"):
            factor = tensors["rms"][name.replace("start_sigma", part)]
            torch.testing.assert_close(factor.square().mean((1, 2)), torch.ones(len(factor)))
            scale *= factor[0].numel() ** 0.5
        torch.testing.assert_close(tensors["rms"][name] * scale, tensors["separate"][name])


def test_sigmas_handling_leaves_the_decomposition_alone(tmp_path: Path, llama_folder: Path) -> None:
    from soka_cli.stages.decompose import decompose

    decompose(context_of(tmp_path, llama_folder, {"method": "soka", "rank": RANK}))
    assert decompose(context_of(tmp_path, llama_folder, {"method": "soka", "rank": RANK, "sigma": "split"})).status == "already done"
