"""A finished module's file: read back as it was written, or noticed."""

from pathlib import Path

import pytest
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors
from soka_cli.stages import parts
from soka_cli.stages.parts import Part, PartFiles

KEY = "ab" * 32


@pytest.fixture
def files(tmp_path: Path) -> PartFiles:
    return PartFiles(tmp_path / "parts")


def part() -> Part:
    torch.manual_seed(0)
    factors = KronFactors(torch.randn(2, 3, 2), torch.randn(2, 2, 4), torch.randn(2))
    spectrum, bounds = torch.randn(2, 5, dtype=torch.float64)
    return Part(factors, spectrum, bounds, {"name": "model.q_proj", "rank": 2, "seconds": 0.25}, "f" * 64)


def test_a_part_is_read_as_it_was_written(files: PartFiles) -> None:
    files.write(KEY, part())
    again = files.read(KEY)
    assert again is not None
    assert (again.record, again.digest) == (part().record, part().digest)
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in part().tensors().items())


def test_what_was_never_written_is_none(files: PartFiles) -> None:
    assert files.read(KEY) is None


def test_any_changed_byte_is_noticed(files: PartFiles) -> None:
    files.write(KEY, part())
    whole = files.path(KEY).read_bytes()
    for place in range(len(whole)):
        files.path(KEY).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=files.path(KEY).name):
            files.read(KEY)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_part_cut_short_is_noticed(files: PartFiles, keep: int) -> None:
    files.write(KEY, part())
    files.path(KEY).write_bytes(files.path(KEY).read_bytes()[:keep])
    with pytest.raises(ValueError, match=files.path(KEY).name):
        files.read(KEY)


def test_a_part_under_another_key_is_not_taken(files: PartFiles) -> None:
    other = KEY[:32] + "cd" * 16  # the same file name
    files.write(other, part())
    with pytest.raises(ValueError, match="digest"):
        files.read(KEY)


def test_a_full_disk_leaves_no_part_and_exits_6(files: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "save_file", full)
    with pytest.raises(SokaError) as caught:
        files.write(KEY, part())
    assert caught.value.exit_code is ExitCode.RESOURCES
    assert list(files.folder.iterdir()) == []
