"""Weights that lie on the disk: the same function, an adapter with values of its own, and bounds refused where they cannot hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from soka_cli.adapter import SokaConfig
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_base, load_folder
from soka_cli.models.offload import FREE_SHARE, Placement, adapting, computing_device, is_offloaded, whereabouts
from soka_cli.recipe.schema import MaxMemorySection, ModelSection
from tests import builders

EMBEDDING = 4 * builders.VOCABULARY * 32
BOUNDS = MaxMemorySection(cpu=2 * EMBEDDING)
TOKENS = torch.arange(4, 20)[None]
TARGETS = ["q_proj", "v_proj"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "soka": lambda: SokaConfig(target_modules=TARGETS, rank={"rule": "fixed", "value": 2}),
    "lora": lambda: peft.LoraConfig(r=2, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=TARGETS),
}


def offloaded(folder: Path, dtype: str = "float32") -> Any:
    return load_folder(folder, dtype=dtype, max_memory=BOUNDS)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "hrm_text"])
def test_a_model_on_the_disk_answers_bit_for_bit_as_one_in_memory(kind: str, tmp_path: Path) -> None:
    folder = builders.tiny_model_folder(tmp_path, kind)
    away, whole = load_folder(folder, dtype="float32", max_memory=MaxMemorySection(cpu=3 * EMBEDDING)), load_folder(folder, dtype="float32")
    assert is_offloaded(away) and not is_offloaded(whole) and any(parameter.is_meta for parameter in away.parameters())
    with torch.no_grad():
        assert torch.equal(away(TOKENS).logits, whole(TOKENS).logits)


def test_the_type_of_the_recipe_holds_for_weights_on_the_disk(llama_folder: Path) -> None:
    bounds = MaxMemorySection(cpu=EMBEDDING)  # in two bytes a value
    away, whole = load_folder(llama_folder, dtype="bfloat16", max_memory=bounds), load_folder(llama_folder, dtype="bfloat16")
    assert is_offloaded(away)
    with torch.no_grad():
        assert torch.equal(away(TOKENS).logits, whole(TOKENS).logits)


@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_over_offloaded_weights_learns_as_over_the_whole_model(method: str, llama_folder: Path) -> None:
    gradients = []
    for model in (load_folder(llama_folder, dtype="float32"), offloaded(llama_folder)):
        torch.manual_seed(0)
        with adapting(model):
            adapted = peft.get_peft_model(model, CONFIGS[method]())
        adapted.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: one.grad for name, one in adapted.named_parameters() if one.requires_grad})
    whole, away = gradients
    assert whole and whole.keys() == away.keys() and all(torch.equal(whole[name], away[name]) for name in whole)


def test_an_adapter_that_reads_the_weights_while_it_is_made_cannot_go_unnoticed(llama_folder: Path) -> None:
    model = offloaded(llama_folder)
    with adapting(model):
        assert all(bool(torch.isnan(one).all()) for name, one in model.named_parameters() if "layers" in name)
        assert not any(one.is_meta for one in model.parameters())
    assert any(one.is_meta for one in model.parameters()) and is_offloaded(model)


def test_it_is_said_how_much_lies_where(llama_folder: Path) -> None:
    model = offloaded(llama_folder)
    elsewhere = sum(parameter.nbytes for parameter in model.parameters()) - EMBEDDING
    assert f"{elsewhere / 1e6:,.1f} MB on the disk" in whereabouts(model)
    assert f"{EMBEDDING / 1e6:,.1f} MB in main memory" in whereabouts(model) and computing_device(model).type == "cpu"


def test_a_model_within_its_bounds_is_loaded_whole(llama_folder: Path) -> None:
    assert not is_offloaded(load_folder(llama_folder, dtype="float32", max_memory=MaxMemorySection(cpu=10**9)))


def test_files_that_weights_had_to_be_written_to_go_with_the_model(tmp_path: Path) -> None:
    model = load_folder(builders.tiny_model_folder(tmp_path, "hrm_text"), dtype="float32", max_memory=BOUNDS)
    folder = Path(model.soka_weights_folder.name)
    assert list(folder.iterdir())
    del model
    import gc

    gc.collect()
    assert not folder.exists()


# ---- refused


def refusal(bounds: MaxMemorySection, device: str) -> SokaError:
    with pytest.raises(SokaError) as caught:
        Placement(bounds, device)
    return caught.value


def test_a_bound_for_a_gpu_alone_is_refused_where_there_is_none() -> None:
    error = refusal(MaxMemorySection(gpu=8), "cpu")
    assert error.exit_code is ExitCode.ENVIRONMENT and "model.max_memory.cpu" in error.hint


def test_a_gpu_that_computes_needs_a_bound() -> None:
    assert refusal(MaxMemorySection(cpu=8), "cuda:1").exit_code is ExitCode.USAGE


def test_the_gpu_that_computes_is_filled_first_and_main_memory_is_bounded_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soka_cli.models.offload.available_memory", lambda: 1000)
    placement = Placement(MaxMemorySection(gpu=8), "cuda:1")
    assert list(placement.options["max_memory"].items()) == [(1, 8), ("cpu", int(FREE_SHARE * 1000))]


def test_bounds_that_no_part_fits_into_are_refused(llama_folder: Path) -> None:
    with pytest.raises(SokaError, match=r"No part .* model.max_memory.cpu, 5 bytes") as caught:
        load_folder(llama_folder, dtype="float32", max_memory=MaxMemorySection(cpu=5))
    assert caught.value.exit_code is ExitCode.RESOURCES


def test_files_of_packed_weights_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the quant extra is not installed")
    load_base(ModelSection(name=str(llama_folder), dtype="float32", quantization="nf4")).save_pretrained(tmp_path)
    with pytest.raises(SokaError, match="packed as nf4") as caught:
        load_folder(tmp_path, dtype="float32", max_memory=BOUNDS)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
