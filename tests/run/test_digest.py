import shutil
from pathlib import Path

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.digest import file_digest, folder_digest, json_digest


def test_a_file_digest_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_missing_file_is_named_with_exit_5(tmp_path: Path) -> None:
    with pytest.raises(SokaError) as caught:
        file_digest(tmp_path / "gone")
    assert (caught.value.exit_code, caught.value.where) == (ExitCode.RUN, str(tmp_path / "gone"))


def test_the_order_of_keys_does_not_count_and_everything_else_does() -> None:
    assert json_digest({"a": 1, "b": [1, 2]}) == json_digest({"b": [1, 2], "a": 1})
    variants = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"a": [1]}, {"b": 1}, {"a": True}]
    assert len({json_digest(value) for value in variants}) == len(variants)


def test_nan_has_no_digest() -> None:
    with pytest.raises(ValueError):
        json_digest({"lr": float("inf")})


def test_a_folder_digest_moves_with_the_folder_and_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("a")
    (folder / "b").write_text("b")
    before = folder_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_digest(tmp_path / "copy") == before
    (tmp_path / "copy" / "sub" / "a").rename(tmp_path / "copy" / "sub" / "c")
    (folder / "b").write_text("B")
    assert len({before, folder_digest(folder), folder_digest(tmp_path / "copy")}) == 3
