"""Stage merge: the pristine base plus what the adapter adds, rounded once, read back and compared."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import device
from soka_cli.models.checkpoint import INDEX_FILE, Checkpoint
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages import merging, parity
from soka_cli.stages.context import StageContext
from soka_cli.stages.merge import merge
from tests.builders import byte_tokenizer, gsm8k_file, recipe_mapping, tiny_model, tiny_model_folder, write_recipe

Contexts = Callable[..., StageContext]
DTYPES = ["float32", "bfloat16", "float16"]


def base_folder(folder: Path, kind: str = "llama", dtype: str = "float32", **options: Any) -> Path:
    """A base checkpoint in `dtype`, with a tokenizer and a licence beside it."""
    tiny_model(kind).to(getattr(torch, dtype)).save_pretrained(folder, **options)
    byte_tokenizer().save_pretrained(folder)
    (folder / "LICENSE.txt").write_text("do as you like\n")
    return folder


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    def make(base: Path, *, method: str = "soka", force: bool = False, **sections: Any) -> StageContext:
        kinds = sections.pop("target_modules", ["q_proj", "v_proj", "down_proj"])
        adapter = {"method": method, "target_modules": kinds, "rank": {"rule": "fixed", "value": 2}}
        if method == "full":
            adapter = {"method": "full"}
        mapping = recipe_mapping(base, gsm8k_file(tmp_path), **sections)
        recipe = write_recipe(tmp_path / "recipe.yaml", mapping | {"adapter": adapter})
        return StageContext(load_recipe(recipe), RunLayout(tmp_path / "run"), SilentReporter(), device="cpu", force=force)

    return make


def adapt(context: StageContext, *, moved: float = 0.05, config: Any = None) -> PeftModel:
    """Put an adapter into the run directory as training would, moved away from its start by noise of the given size."""
    model = AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32)
    adapted = get_peft_model(model, config or peft_config(context.recipe.adapter, seed=0))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad and moved:
                parameter += moved * torch.randn_like(parameter)
    adapted.save_pretrained(str(context.layout.adapter))
    return adapted.eval()


def parity_of(context: StageContext) -> dict[str, Any]:
    return dict(json.loads(context.layout.parity.read_text()))


def refusal(context: StageContext, exit_code: ExitCode, **options: Any) -> SokaError:
    with pytest.raises(SokaError) as caught:
        merge(context, **options)
    assert caught.value.exit_code is exit_code and caught.value.hint
    assert not context.layout.merged_model.exists()
    return caught.value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "hrm_text"])
def test_an_untrained_adapter_merges_to_the_base_bit_for_bit(contexts: Contexts, tmp_path: Path, dtype: str, kind: str) -> None:
    base = base_folder(tmp_path / "base", kind, dtype)
    context = contexts(base, target_modules="all-linear")
    adapt(context, moved=0.0)
    merge(context)
    assert (context.layout.merged_model / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert parity_of(context)["max_abs_weight_error"] == 0.0


def test_a_negative_zero_in_the_base_stays_one(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, :5] = -0.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    context = contexts(base)
    adapt(context, moved=0.0)
    merge(context, check="weights")
    assert (context.layout.merged_model / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["soka", "lora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_is_base_plus_difference_rounded_once(contexts: Contexts, tmp_path: Path, dtype: str, method: str, kind: str) -> None:
    base = base_folder(tmp_path / "base", kind, dtype)
    context = contexts(base, method=method, target_modules="all-linear")
    adapted = adapt(context)
    merge(context)
    before, after = load_file(base / "model.safetensors"), load_file(context.layout.merged_model / "model.safetensors")
    layers = {name: layer for name, layer in adapted.base_model.model.named_modules() if hasattr(layer, "get_delta_weight")}
    assert layers and before.keys() == after.keys()
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module not in layers:
            assert torch.equal(after[name], tensor)
            continue
        exact = tensor.float() + layers[module].get_delta_weight("default").detach()
        assert not torch.equal(after[name], tensor)
        assert torch.equal(after[name], exact.to(tensor.dtype))
    assert parity_of(context)["dtype"] == dtype
    assert (parity_of(context)["max_abs_weight_error"] == 0.0) is (dtype == "float32")


@pytest.mark.parametrize("kinds", [["v_proj"], ["q_proj", "gate_proj", "o_proj"]])
def test_a_part_of_a_fused_tensor_is_merged_in_its_place(contexts: Contexts, tmp_path: Path, kinds: list[str]) -> None:
    base = base_folder(tmp_path / "base", "hrm_text", "bfloat16")
    context = contexts(base, target_modules=kinds)
    adapted = adapt(context)
    merge(context, check="weights")
    assert parity_of(context)["modules"] == len(context.recipe.adapter.target_modules) * 2 + ("gate_proj" in kinds) * 2
    pristine = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(context.layout.merged_model, dtype=torch.float32)
    layers = {name: layer for name, layer in adapted.base_model.model.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, weight in pristine.named_parameters():
        delta = layers[module].get_delta_weight("default") if (module := name.removesuffix(".weight")) in layers else torch.zeros(())
        assert torch.equal(merged.get_parameter(name), (weight + delta).bfloat16().float()), name


def test_a_packed_base_takes_no_merged_weight(contexts: Contexts, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the quant extra is not installed")
    from transformers import BitsAndBytesConfig

    base = base_folder(tmp_path / "base")
    packing = BitsAndBytesConfig(load_in_8bit=True)
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=packing, device_map={"": "cpu"}, dtype=torch.float32)
    packed.save_pretrained(tmp_path / "packed")
    byte_tokenizer().save_pretrained(tmp_path / "packed")
    context = contexts(base)
    adapt(context)
    error = refusal(contexts(tmp_path / "packed"), ExitCode.USAGE, check="weights")
    assert "int8" in error.why and "float model" in error.hint


@pytest.mark.parametrize("method", ["soka", "lora", "pissa"])
def test_the_merged_model_answers_as_the_adapter_does(contexts: Contexts, tmp_path: Path, method: str) -> None:
    base = base_folder(tmp_path / "base")
    context = contexts(base, method=method)
    adapted = converted_pissa(context) if method == "pissa" else adapt(context)
    merge(context)
    merged = AutoModelForCausalLM.from_pretrained(context.layout.merged_model, dtype=torch.float32).eval()
    pristine = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, pristine(ids).logits, atol=1e-3)
    assert parity_of(context)["max_abs_logit_error"] < 1e-5
    assert parity_of(context)["top1_agreement"] == 1.0


def converted_pissa(context: StageContext) -> PeftModel:
    """A trained PiSSA adapter, saved as a LoRA of twice the rank on the pristine base."""
    model = AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32)
    adapted = get_peft_model(model, peft_config(context.recipe.adapter, seed=0))
    start = context.layout.root / "start"
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(str(start))
    adapted.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(str(context.layout.adapter), path_initial_model_for_weight_conversion=str(start))
    shutil.rmtree(start)
    return adapted.eval()


def test_an_unconverted_pissa_adapter_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base"), method="pissa")
    adapt(context)
    assert "converted form" in refusal(context, ExitCode.RUN).why


def test_shards_index_and_headers_are_the_bases(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", max_shard_size="30KB")
    context = contexts(base)
    adapt(context)
    merge(context, check="weights")
    names = {path.name: path.stat().st_size for path in base.glob("*.safetensors")}
    assert len(names) > 2
    assert {path.name: path.stat().st_size for path in context.layout.merged_model.glob("*.safetensors")} == names
    assert (context.layout.merged_model / INDEX_FILE).read_bytes() == (base / INDEX_FILE).read_bytes()


def test_everything_but_weights_is_carried_over(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    (base / INDEX_FILE).write_text("{}")  # beside a single file it counts for nothing
    context = contexts(base)
    adapt(context)
    merge(context)
    carried = {path.name for path in context.layout.merged_model.iterdir()}
    assert carried == {path.name for path in base.iterdir()} - {"pytorch_model.bin", INDEX_FILE}
    for name in carried - {"model.safetensors"}:
        assert (context.layout.merged_model / name).read_bytes() == (base / name).read_bytes()
    assert AutoTokenizer.from_pretrained(context.layout.merged_model)("Ann").input_ids == byte_tokenizer()("Ann").input_ids


@pytest.fixture
def plain_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.mark.usefixtures("plain_umask")
def test_the_merged_files_can_be_read_by_others(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    (base / "model.safetensors").chmod(0o600)
    context = contexts(base)
    adapt(context)
    merge(context, check="weights")
    assert {oct(path.stat().st_mode & 0o777) for path in context.layout.merged_model.iterdir()} == {"0o644"}


def test_a_tied_embedding_stays_tied(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "gpt2")
    context = contexts(base, target_modules="all-linear")
    adapt(context)
    merge(context)
    merged = AutoModelForCausalLM.from_pretrained(context.layout.merged_model)
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert torch.equal(merged.lm_head.weight, tiny_model("gpt2").lm_head.weight)


def test_merging_twice_says_so_and_adds_nothing(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    context = contexts(base)
    adapt(context)
    first = merge(context)
    written = (context.layout.merged_model / "model.safetensors").read_bytes()
    second = merge(context)
    assert (first.status, second.status) == ("done", "already done")
    assert second.figures == first.figures
    assert (context.layout.merged_model / "model.safetensors").read_bytes() == written


def test_merging_again_with_force_starts_from_the_pristine_base(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapt(contexts(base))
    merge(contexts(base), check="weights")
    written = (contexts(base).layout.merged_model / "model.safetensors").read_bytes()
    shutil.rmtree(contexts(base).layout.merge)  # a lost folder, then --force
    merge(contexts(base, force=True), check="weights")
    assert (contexts(base).layout.merged_model / "model.safetensors").read_bytes() == written


def test_another_adapter_is_stale_without_force(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapt(contexts(base))
    merge(contexts(base), check="weights")
    adapt(contexts(base), moved=0.01)
    with pytest.raises(SokaError) as caught:
        merge(contexts(base), check="weights")
    assert caught.value.exit_code is ExitCode.RUN and "adapter_sha256" in caught.value.why


def test_without_an_adapter_the_order_is_wrong(contexts: Contexts, tmp_path: Path) -> None:
    assert "soka train" in refusal(contexts(base_folder(tmp_path / "base")), ExitCode.RUN).hint


def test_an_adapter_of_other_modules_is_refused_by_name(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    context = contexts(base)
    adapt(context)
    path = context.layout.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name.replace("layers.0", "layers.7"): tensor.clone() for name, tensor in tensors.items()}, path)
    assert "layers.7" in refusal(context, ExitCode.RUN).why


def test_an_adapter_that_lacks_modules_is_refused_by_name(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    path = context.layout.adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "layers.1" not in name}, path)
    assert "layers.1" in refusal(context, ExitCode.RUN).why


def test_an_adapter_of_another_base_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    other = contexts(base_folder(tmp_path / "other", "gpt2"), target_modules=["c_fc"])
    adapt(other)
    assert "adapter" in refusal(contexts(base_folder(tmp_path / "base")), ExitCode.RUN).what


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_file_is_named(contexts: Contexts, tmp_path: Path, name: str) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    path = context.layout.adapter / name
    path.write_bytes(path.read_bytes()[:20])
    assert refusal(context, ExitCode.RUN).where == str(path)


def test_a_module_that_was_trained_whole_is_written_in_the_bases_place(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", dtype="bfloat16")
    context = contexts(base, method="lora")
    adapted = adapt(context, config=LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    merge(context)
    before, after = load_file(base / "model.safetensors"), load_file(context.layout.merged_model / "model.safetensors")
    head = adapted.base_model.model.lm_head.modules_to_save["default"].weight.detach()
    assert torch.equal(after["lm_head.weight"], head.bfloat16())
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved == {"lm_head.weight", *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))}


@pytest.mark.parametrize("kind", ["gpt2", "hrm_text"])
def test_what_peft_merges_itself_finds_its_place_in_the_bases_form(contexts: Contexts, tmp_path: Path, kind: str) -> None:
    context = contexts(base_folder(tmp_path / "base", kind), method="dora", target_modules="all-linear")
    adapt(context)
    merge(context)  # compares the merged model's logits with those of base and adapter
    assert 0 <= parity_of(context)["max_abs_logit_error"] < 1e-4


def test_a_value_that_the_type_cannot_hold_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base", dtype="float16"), method="lora")
    adapt(context, moved=1e4)
    error = refusal(context, ExitCode.CHECK, check="weights")
    assert "float16" in error.why and "proj.weight" in error.where


def test_a_full_disk_is_told_before_anything_is_written(contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from soka_cli.run import resources

    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    monkeypatch.setattr(resources, "free_bytes", lambda _: 1000)
    error = refusal(context, ExitCode.RESOURCES)
    needed = merging.needed_bytes(Checkpoint(Path(context.recipe.model.name)))
    assert str(needed) in error.what and "1000" in error.what


def test_too_little_memory_for_the_logits_names_the_way_round(contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    monkeypatch.setattr(device, "available_memory", lambda: 1000)
    assert "--check weights" in refusal(context, ExitCode.RESOURCES).hint
    assert merge(context, check="weights").figures["max_abs_logit_error"] is None


@pytest.mark.parametrize("touched", [True, False])
def test_a_byte_that_changed_on_the_disk_is_found(
    contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touched: bool
) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    write = merging.write_model
    name = "model.layers.0.self_attn.q_proj.weight" if touched else "model.norm.weight"

    def damaging(work: Any, folder: Path, task: Any) -> None:
        write(work, folder, task)
        entry = work.base.entry(name)
        data = bytearray((folder / entry.shard).read_bytes())
        data[entry.start] ^= 1
        (folder / entry.shard).write_bytes(bytes(data))

    monkeypatch.setattr(merging, "write_model", damaging)
    assert refusal(context, ExitCode.CHECK).where == f"tensor {name}"


def test_logits_beyond_the_tolerance_leave_no_model(contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    monkeypatch.setattr(parity, "load_folder", lambda *_, **__: tiny_model(seed=3))
    assert "logits differ" in refusal(context, ExitCode.CHECK).why
    assert not context.layout.parity.exists()


def test_a_logit_that_is_no_number_is_beyond_every_tolerance() -> None:
    whole, broken = torch.ones(3, 4), torch.full((3, 4), float("nan"))
    found = parity.judged([whole], [broken], 0.16)
    assert not found.max_abs_logit_error <= found.tolerance


def test_agreement_is_the_share_of_equal_first_choices() -> None:
    one = torch.tensor([[1.0, 2.0], [5.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 2.0], [0.0, 5.0], [0.0, 1.5], [0.0, 1.0]])
    found = parity.judged([one[:2], one[2:]], [other[:2], other[2:]], 0.1)
    assert (found.top1_agreement, found.max_abs_logit_error, found.positions) == (0.75, 5.0, 4)
    assert found.tolerance == pytest.approx(0.5)


def test_the_prompts_are_the_benchmarks_then_the_training_rows_then_plain_ids(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    entry = {"task": "gsm8k", "path": str(gsm8k_file(tmp_path, 3, "test.jsonl")), "protocol": "pissa"}
    asked = parity.parity_prompts(contexts(base, eval=[{"task": "math", "path": "nowhere/at-all"}, entry]))
    assert len(asked) == 3 and "### Instruction" in tokenizer.decode(asked[0])
    trained = parity.parity_prompts(contexts(base))
    assert len(trained) == parity.PROMPTS and "How many pens" in tokenizer.decode(trained[0])
    lost = contexts(base)
    (tmp_path / "train.jsonl").unlink()
    assert parity.parity_prompts(lost) == [list(range(32))]


def test_method_full_refers_to_the_trained_model(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base"), method="full")
    assert "soka train" in refusal(context, ExitCode.RUN).hint
    tiny_model_folder(context.layout.full_model, seed=2)
    outcome = merge(context)
    assert parity_of(context) == {
        "max_abs_weight_error": 0.0,
        "max_abs_logit_error": None,
        "top1_agreement": None,
        "dtype": "float32",
        "model": "train/model",
    }
    assert "train/model" in outcome.notes[-1] and not context.layout.merged_model.exists()
    assert merge(context).status == "already done"


def test_the_figures_are_plain_json(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    outcome = merge(context)
    json.dumps(outcome.figures, allow_nan=False)
    assert outcome.figures.items() >= parity_of(context).items()
    assert outcome.tables[0].rows and "--model merged" in outcome.next_commands[0]


@pytest.mark.parametrize("method", ["soka", "lora"])
@pytest.mark.parametrize("entries", [1, 50, 333])
def test_blocks_of_rows_make_the_same_model(
    contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, entries: int
) -> None:
    base = base_folder(tmp_path / "base")
    adapt(contexts(base, method=method))
    merge(contexts(base, method=method), check="weights")
    folder = contexts(base, method=method).layout.merged_model
    whole = load_file(folder / "model.safetensors")
    monkeypatch.setattr(merging, "BLOCK_ENTRIES", entries)
    shutil.rmtree(folder.parent)
    merge(contexts(base, method=method, force=True), check="weights")
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["llama", "hrm_text"])
@pytest.mark.parametrize(("dtype", "asked"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "float16")])
def test_another_type_is_reached_in_one_rounding(contexts: Contexts, tmp_path: Path, kind: str, dtype: str, asked: str) -> None:
    base = base_folder(tmp_path / "base", kind, dtype, max_shard_size="30KB")
    context = contexts(base)
    adapted = adapt(context)
    merge(context, dtype=asked)
    pristine = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(context.layout.merged_model)
    layers = {name: layer for name, layer in adapted.base_model.model.named_modules() if hasattr(layer, "get_delta_weight")}
    assert str(merged.dtype) == f"torch.{asked}" and parity_of(context)["dtype"] == asked
    for name, weight in pristine.named_parameters():
        module = name.removesuffix(".weight")
        delta = layers[module].get_delta_weight("default").detach() if module in layers else torch.zeros(())
        assert torch.equal(merged.get_parameter(name), (weight + delta).to(getattr(torch, asked))), name
    index = json.loads((context.layout.merged_model / INDEX_FILE).read_text())
    sizes = [tensor.nbytes for path in context.layout.merged_model.glob("*.safetensors") for tensor in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    room = merging.needed_bytes(Checkpoint(base), asked)
    assert abs(room - sum(path.stat().st_size for path in context.layout.merged_model.iterdir())) < 200 * len(sizes)


def test_an_untouched_value_that_the_asked_type_cannot_hold_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    context = contexts(base)
    adapt(context)
    error = refusal(context, ExitCode.CHECK, check="weights", dtype="float16")
    assert "100000 at (3,)" in error.why and error.where == "tensor model.norm.weight"


def test_another_type_is_another_merge(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base"))
    adapt(context)
    merge(context, check="weights")
    with pytest.raises(SokaError) as caught:
        merge(context, check="weights", dtype="bfloat16")
    assert caught.value.exit_code is ExitCode.RUN and "dtype" in caught.value.why


KILLED = """
import os, signal, sys
from soka_cli.cli.app import main
from soka_cli.stages import merging
parts, left = merging.Merge.parts, [int(sys.argv[1])]
def counted(self, name):
    for part in parts(self, name):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        yield part
merging.Merge.parts = counted
code = main(sys.argv[2:])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"transformers", "peft"}))
sys.exit(code)
"""


def killed(context: StageContext, after: int) -> subprocess.CompletedProcess[str]:
    words = ["merge", "--run", str(context.layout.root), "--recipe", str(context.loaded.path), "--check", "weights", "--offline"]
    return subprocess.run([sys.executable, "-c", KILLED, str(after), *words], capture_output=True, text=True, check=False)


def test_a_killed_merge_starts_over_and_leaves_nothing_half_written(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(base_folder(tmp_path / "base", max_shard_size="30KB"))
    adapt(context)
    blocks = len(Checkpoint(Path(context.recipe.model.name)).names)
    for after in (2, blocks - 1, blocks + 3):  # early and late in writing, and in reading back
        assert killed(context, after).returncode == -signal.SIGKILL
        assert not context.layout.merged_model.exists() and not context.layout.parity.exists()
    done = killed(context, 10**6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"  # and neither transformers nor PEFT was imported
    assert {path.name for path in context.layout.merge.iterdir()} == {"parity.json", "model"}
    written = {path.name: path.read_bytes() for path in context.layout.merged_model.iterdir()}
    shutil.rmtree(context.layout.merge)
    merge(contexts(Path(context.recipe.model.name), force=True), check="weights")
    assert {path.name: path.read_bytes() for path in context.layout.merged_model.iterdir()} == written
