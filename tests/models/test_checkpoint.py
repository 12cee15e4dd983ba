"""Reading a checkpoint tensor by tensor, and refusing damaged ones by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import INDEX_FILE, Checkpoint
from tests.builders import tiny_model, tiny_model_folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("single"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    return tmp_path / "sharded"


def refusal(folder: Path) -> SokaError:
    with pytest.raises(SokaError) as caught:
        checkpoint = Checkpoint(folder)
        for name in checkpoint.names:
            checkpoint.tensor(name)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    return caught.value


def test_shards_and_a_single_file_hold_the_same_tensors(single: Path, sharded: Path) -> None:
    one, many = Checkpoint(single), Checkpoint(sharded)
    assert len(one.shards) == 1 and len(many.shards) > 2
    assert set(one.names) == set(many.names)
    expected = load_file(single / "model.safetensors")
    for name, tensor in expected.items():
        for checkpoint in (one, many):
            assert torch.equal(checkpoint.tensor(name), tensor)
            assert checkpoint.shape(name) == tuple(tensor.shape) and checkpoint.dtype(name) is tensor.dtype


def test_the_digest_is_of_the_tensors_not_of_folder_or_shards(single: Path, sharded: Path) -> None:
    assert Checkpoint(single).digest == Checkpoint(sharded).digest


def test_other_weights_have_another_digest(single: Path, tmp_path: Path) -> None:
    other = tiny_model_folder(tmp_path / "other", seed=1)
    assert Checkpoint(single).digest != Checkpoint(other).digest


def test_an_entrys_bytes_are_the_tensor(single: Path) -> None:
    checkpoint = Checkpoint(single)
    name = checkpoint.names[3]
    entry = checkpoint.entry(name)
    stored = (single / entry.shard).read_bytes()[entry.start : entry.end]
    assert torch.equal(
        torch.frombuffer(bytearray(stored), dtype=checkpoint.dtype(name)).view(checkpoint.shape(name)), checkpoint.tensor(name)
    )


def test_a_missing_shard_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    assert refusal(sharded).where == str(lost)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_shard_cut_short_is_named(sharded: Path, keep: int) -> None:
    cut = sorted(sharded.glob("*.safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:keep])
    assert refusal(sharded).where == str(cut)


def test_a_shard_that_lacks_what_the_index_says_is_named(sharded: Path) -> None:
    poor = sorted(sharded.glob("*.safetensors"))[1]
    save_file({"something.else": torch.zeros(2)}, poor)
    assert refusal(sharded).where == str(poor)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_named(sharded: Path, text: str) -> None:
    (sharded / INDEX_FILE).write_text(text)
    assert INDEX_FILE in refusal(sharded).where


def test_an_index_cannot_point_out_of_its_folder(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../elsewhere.safetensors")
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    assert "outside" in refusal(sharded).what


def test_reading_leaves_the_folder_as_it_was(single: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(single, copy)
    checkpoint = Checkpoint(copy)
    tensor = checkpoint.tensor(checkpoint.names[0])
    tensor.zero_()
    assert (copy / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
