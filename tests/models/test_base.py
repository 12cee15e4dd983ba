"""Loading the base model and its tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import base
from soka_cli.models.base import load_base, load_tokenizer, pick_device
from soka_cli.recipe.schema import ModelSection
from tests.builders import byte_tokenizer, shared_folder, tiny_model, tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def refusal(exit_code: ExitCode, call: Any, *arguments: Any) -> SokaError:
    with pytest.raises(SokaError) as caught:
        call(*arguments)
    assert caught.value.exit_code is exit_code and caught.value.hint
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_base_comes_in_the_recipes_type(folder: Path, dtype: Any) -> None:
    model = load_base(ModelSection(name=str(folder), dtype=dtype))
    stored = load_file(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name].to(getattr(torch, dtype)))
    assert not model.training


def test_an_encoders_tokenizer_ends_a_text_with_its_separator(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(pad=True)
    tokenizer.eos_token, tokenizer.sep_token = None, "</s>"
    tokenizer.save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSection(name=str(tmp_path))).eos_token == "</s>"


def test_a_tokenizer_without_pad_pads_with_eos_and_keeps_its_vocabulary(folder: Path) -> None:
    tokenizer = load_tokenizer(ModelSection(name=str(folder)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == len(byte_tokenizer())
    assert tokenizer(["a", "abc"], padding=True)["attention_mask"] in ([[1, 1, 0, 0], [1, 1, 1, 1]], [[0, 0, 1, 1], [1, 1, 1, 1]])


def test_llama_2_pads_with_eos(tmp_path: Path) -> None:
    source = shared_folder("models", "llama2-tokenizer")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(ModelSection(name=str(tmp_path)))
    assert len(tokenizer) == 32000
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_generation_pads_with_eos_where_the_model_has_no_pad(folder: Path) -> None:
    assert load_base(ModelSection(name=str(folder))).generation_config.pad_token_id == 2


def test_a_pad_token_of_its_own_is_kept(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path, pad=True)
    assert load_tokenizer(ModelSection(name=str(tmp_path))).pad_token_id == 3


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "EOS" in refusal(ExitCode.ENVIRONMENT, load_tokenizer, ModelSection(name=str(tmp_path))).what


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert "tokenizer" in refusal(ExitCode.ENVIRONMENT, load_tokenizer, ModelSection(name=str(tmp_path))).what


def test_a_parameter_without_a_tensor_is_refused_not_made_up(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert "model.norm.weight" in refusal(ExitCode.ENVIRONMENT, load_base, ModelSection(name=str(tmp_path))).why


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    refusal(ExitCode.ENVIRONMENT, load_base, ModelSection(name=str(tmp_path)))


def test_a_model_too_large_for_the_device_is_exit_6(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(base, "_refuse_mismatch", full)
    assert "2.00 GiB" in refusal(ExitCode.RESOURCES, load_base, ModelSection(name=str(folder))).why


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (pick_device("auto"), pick_device("cpu")) == ("cpu", "cpu")
    refusal(ExitCode.ENVIRONMENT, pick_device, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (pick_device("auto"), pick_device("cuda:1")) == ("cuda", "cuda:1")
    refusal(ExitCode.ENVIRONMENT, pick_device, "cuda:2")


@pytest.mark.parametrize("choice", ["gpu", "cuda:", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_a_mistake_on_the_command_line(choice: str) -> None:
    refusal(ExitCode.USAGE, pick_device, choice)
