"""Packed bases through the command line: trained, resumed, evaluated, merged into the float base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from soka_cli.cli.app import main
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import quantised
from soka_cli.models.base import load_base, load_folder
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.schema import ModelSection
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.stages import train
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import decompose
from soka_cli.stages.dimensions import dimensions
from soka_cli.stages.doctor import packing_checks
from soka_cli.stages.memory import estimate, packed_weights
from soka_cli.stages.sizes import adapter_sizes, planned_modules
from tests import builders
from tests.stages.test_memory import FACTS, LENGTH, ROWS, saved_bytes

pytest.importorskip("bitsandbytes", reason="the quant extra is not installed")
KINDS = ("nf4", "int8")


@pytest.fixture
def here(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    builders.gsm8k_file(tmp_path)
    builders.gsm8k_file(tmp_path, 3, "test.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(here: Path, model: Path, kind: str, **sections: Any) -> None:
    mapping = builders.recipe_mapping(model, here / "train.jsonl", **sections)
    mapping["model"]["quantization"] = kind
    mapping["eval"] = [{"task": "gsm8k", "path": str(here / "test.jsonl"), "max_new_tokens": 4}]
    builders.write_recipe(here / "tiny.yaml", mapping)


def soka(verb: str, *words: str) -> int:
    return main([verb, "-r", "tiny.yaml", "--device", "cpu", "--offline", *words])


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 20)[None]).logits


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """The tiny Llama as a folder whose files hold nf4."""
    folder = tmp_path_factory.mktemp("packed")
    load_base(ModelSection(name=str(llama_folder), dtype="float32", quantization="nf4")).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_folder / name, folder)
    return folder


# ---- the pipeline


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["soka", "lora"])
def test_a_packed_base_is_trained_evaluated_and_merged(here: Path, llama_folder: Path, kind: str, method: str) -> None:
    write(here, llama_folder, kind, adapter={"method": method}, train={"steps": 3})
    assert soka("run", "-d", "run") == ExitCode.DONE
    layout = RunLayout(here / "run")
    losses = [row["loss"] for row in read_lines(layout.metrics)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    told = {
        model: json.loads(layout.scores("gsm8k-plain", model).read_bytes())["decoding"]["quantization"]
        for model in ("base", "adapter", "merged")
    }
    assert told == {"base": kind, "adapter": kind, "merged": "none"}


@pytest.mark.parametrize("kind", KINDS)
def test_merging_adds_the_adapter_to_the_float_base(here: Path, llama_folder: Path, kind: str) -> None:
    import peft

    write(here, llama_folder, kind, train={"steps": 3})
    assert soka("train", "-d", "run") == soka("merge", "-d", "run") == ExitCode.DONE
    layout = RunLayout(here / "run")
    whole = peft.PeftModel.from_pretrained(load_folder(llama_folder, dtype="float32"), str(layout.adapter)).eval()
    torch.testing.assert_close(outputs(load_folder(layout.merged_model, dtype="float32")), outputs(whole), rtol=0.0, atol=1e-5)
    assert json.loads(layout.parity.read_bytes())["top1_agreement"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_over_packed_weights_is_the_packed_base_bit_for_bit(here: Path, llama_folder: Path, kind: str) -> None:
    import peft

    write(here, llama_folder, kind, train={"steps": 1, "lr": 1e-30})
    assert soka("train", "-d", "run") == ExitCode.DONE
    section = ModelSection(name=str(llama_folder), dtype="float32", quantization=kind)  # type: ignore[arg-type]
    adapted = peft.PeftModel.from_pretrained(load_base(section), str(RunLayout(here / "run").adapter)).eval()
    assert torch.equal(outputs(adapted), outputs(load_base(section)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_training_ends_as_an_undisturbed_one(here: Path, llama_folder: Path, kind: str, precision: str) -> None:
    options = {"save_every": 2, "eval_every": 1, "precision": precision, "schedule": "constant", "warmup": 0.0}
    write(here, llama_folder, kind, train={"steps": 2, **options}, data={"validation": {"fraction": 0.2}})
    assert soka("train", "-d", "stopped") == ExitCode.DONE
    write(here, llama_folder, kind, train={"steps": 4, **options}, data={"validation": {"fraction": 0.2}})
    assert soka("train", "-d", "stopped") == soka("train", "-d", "whole") == ExitCode.DONE
    one, other = (load_file(RunLayout(here / name).adapter / "adapter_model.safetensors") for name in ("stopped", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_reading_the_held_out_loss_leaves_the_packed_base_as_it_is(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes as bnb

    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    model = load_base(ModelSection(name=str(llama_folder), dtype="float32", quantization="nf4"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outputs(model.eval())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(getattr(one.weight.quant_state, "packing_format_for_cpu", False) for one in linear4bit(model))


def linear4bit(model: Any) -> list[Any]:
    found = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert found
    return found


def test_what_is_not_packed_trains_in_fp32_and_products_are_in_the_precision(llama_folder: Path) -> None:
    model = load_base(ModelSection(name=str(llama_folder), dtype="bfloat16", quantization="nf4"))
    assert {one.compute_dtype for one in linear4bit(model)} == {torch.bfloat16}
    model = quantised.prepare_training(model, torch.float32)
    assert {one.compute_dtype for one in linear4bit(model)} == {torch.float32}
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "norm" in name or "embed" in name or "head" in name} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_base_to_be_packed_is_decomposed_from_its_float_files_and_that_is_said(here: Path, llama_folder: Path) -> None:
    write(here, llama_folder, "nf4")
    loaded = load_recipe(here / "tiny.yaml")
    outcome = decompose(StageContext(loaded, RunLayout(here / "run"), device="cpu", offline=True))
    assert any("packed as nf4 when it is loaded" in note and "float32 weights of its files" in note for note in outcome.notes)


# ---- a folder that is packed already


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_folder_is_trained_and_evaluated(here: Path, packed_folder: Path, precision: str) -> None:
    write(here, packed_folder, "none", train={"steps": 2, "precision": precision})
    assert soka("train", "-d", "run") == soka("eval", "-d", "run", "--model", "adapter") == ExitCode.DONE


def test_packing_at_load_gives_the_packed_folder_s_answers(packed_folder: Path, llama_folder: Path) -> None:
    packed = load_base(ModelSection(name=str(llama_folder), dtype="float32", quantization="nf4"))
    assert torch.equal(outputs(load_base(ModelSection(name=str(packed_folder), dtype="float32"))), outputs(packed))


def test_a_folder_that_is_packed_in_another_way_is_refused(packed_folder: Path) -> None:
    with pytest.raises(SokaError, match="packed already, as nf4") as caught:
        load_base(ModelSection(name=str(packed_folder), dtype="float32", quantization="int8"))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize("method", ["full", "pissa"])
def test_methods_that_need_the_weights_refuse_a_packed_folder(here: Path, packed_folder: Path, method: str, capsys: Any) -> None:
    adapter = {"method": method} | ({} if method == "full" else {"rank": {"rule": "fixed", "value": 2}, "target_modules": ["q_proj"]})
    mapping = builders.recipe_mapping(packed_folder, here / "train.jsonl")
    builders.write_recipe(here / "tiny.yaml", mapping | {"adapter": adapter})
    assert soka("train", "-d", "run") == ExitCode.USAGE
    assert "packed" in capsys.readouterr().err


# ---- methods and options of training


@pytest.mark.parametrize(("kind", "method", "code"), [("nf4", "dora", 0), ("int8", "lokr", 0), ("nf4", "lokr", 2), ("int8", "dora", 2)])
def test_a_baseline_trains_over_packed_weights_or_is_refused(
    here: Path, llama_folder: Path, kind: str, method: str, code: int, capsys: Any
) -> None:
    write(here, llama_folder, kind, adapter={"method": method}, train={"steps": 1})
    assert soka("train", "-d", "run") == code
    assert ("does not work over this base's packed weights" in capsys.readouterr().err) is (code != 0)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing_over_packed_weights(here: Path, llama_folder: Path, kind: str) -> None:
    for name, checkpointing in (("on", True), ("off", False)):
        write(here, llama_folder, kind, train={"steps": 2, "warmup": 0.0, "activation_checkpointing": checkpointing})
        assert soka("train", "-d", name) == ExitCode.DONE
    one, other = (load_file(RunLayout(here / name).adapter / "adapter_model.safetensors") for name in ("on", "off"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], one[name.replace("soka_", "soka_start_")]) for name in one if ".soka_U" in name)


# ---- refusals


@pytest.mark.parametrize("method", ["full", "pissa"])
def test_methods_that_need_the_weights_refuse_quantization(here: Path, llama_folder: Path, method: str, capsys: Any) -> None:
    rank = {} if method == "full" else {"rank": {"rule": "fixed", "value": 2}}
    mapping = builders.recipe_mapping(llama_folder, here / "train.jsonl", model={"quantization": "nf4"})
    builders.write_recipe(here / "tiny.yaml", mapping | {"adapter": {"method": method} | rank})
    assert soka("train") == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "tiny.yaml:4" in said and "quantization: none" in said


def test_a_missing_bitsandbytes_is_said_before_anything_is_computed(
    here: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    monkeypatch.setattr(train, "decompose", lambda context: pytest.fail("decomposed before the package was looked for"))
    write(here, llama_folder, "nf4")
    for verb in ("train", "eval"):
        assert soka(verb, "-d", "run") == ExitCode.ENVIRONMENT
        assert "soka-cli[quant]" in capsys.readouterr().err


def test_doctor_looks_for_bitsandbytes_where_a_recipe_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packing_checks("none") == []
    assert [check.status for check in packing_checks("nf4")] == ["ok"]


def test_decomposing_reads_the_float_weights(here: Path, llama_folder: Path) -> None:
    for kind in ("none", "nf4"):
        write(here, llama_folder, kind)
        assert soka("decompose", "-d", kind) == ExitCode.DONE
    one, other = (load_file(RunLayout(here / kind).factors) for kind in ("none", "nf4"))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- the plan


@pytest.mark.parametrize(("kind", "share"), [("nf4", 0.5625), ("int8", 1.0)])
def test_planned_bytes_are_those_of_the_packed_model(llama_folder: Path, kind: str, share: float) -> None:
    section = ModelSection(name=str(llama_folder), dtype="float32", quantization=kind)  # type: ignore[arg-type]
    model = load_base(section)
    base = dimensions(section, ["q_proj"])
    held = sum(tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items() if "quant_map" not in name)
    unpacked = 4 * base.hidden * base.intermediate
    assert base.linear * share + 4 * (base.parameters - base.linear) == pytest.approx(held, rel=0.03)
    assert packed_weights(base, 4, kind) == int(base.linear * share) + 4 * (base.parameters - base.linear) + unpacked


def test_a_packed_folder_is_planned_as_one(packed_folder: Path, llama_folder: Path) -> None:
    packed = dimensions(ModelSection(name=str(packed_folder)), ["q_proj"])
    assert packed.packed == "nf4" and dimensions(ModelSection(name=str(llama_folder)), ["q_proj"]).packed is None


@pytest.mark.parametrize(("kind", "precision", "tolerance"), [("nf4", "bf16", 0.05), ("nf4", "fp32", 0.2), ("int8", "fp32", 0.2)])
def test_estimated_activations_over_packed_weights_are_what_autograd_saves(
    kind: str, precision: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from soka_cli.adapter.methods import peft_config

    LlamaForCausalLM(LlamaConfig(**FACTS)).to(torch.bfloat16).save_pretrained(tmp_path)
    method = "adapter={method: lora, target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 2}}"
    overrides = [method, f"train.micro_batch_size={ROWS}", f"data.max_length={LENGTH}", f"train.precision={precision}"]
    recipe = load_recipe("gsm8k", [*overrides, f"model.name={tmp_path}", f"model.quantization={kind}", "model.revision=null"]).recipe
    base = dimensions(recipe.model, recipe.adapter.target_modules)
    model = quantised.prepare_training(load_base(recipe.model), torch.float32 if precision == "fp32" else torch.bfloat16)
    adapted = get_peft_model(model, peft_config(recipe.adapter, seed=0)).train()
    sizes = adapter_sizes(recipe.adapter, planned_modules(recipe.adapter, base.targets), most=True)
    show_kept_inputs(monkeypatch)
    measured = saved_bytes(adapted, autocast=precision == "bf16")
    assert estimate(recipe, base, sizes).activations == pytest.approx(measured, rel=tolerance)


def show_kept_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 layers keep their inputs as plain attributes, where autograd's hooks do not see them."""
    from bitsandbytes.autograd import _functions

    kept = _functions.MatMul8bitFp.forward

    def forward(ctx: Any, inputs: torch.Tensor, *others: Any) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        return kept(ctx, inputs, *others)

    monkeypatch.setattr(_functions.MatMul8bitFp, "forward", staticmethod(forward))
