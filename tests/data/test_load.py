"""Rows out of files, and what is said where there are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from soka_cli.data.load import load_rows, source_digest
from soka_cli.errors import ExitCode, SokaError
from tests import builders

ROWS = [{"a": "1", "lang": "python"}, {"a": "2", "lang": "rust"}, {"a": "é\n3", "lang": "python"}]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"rows{ending}"
    if ending == ".jsonl":
        builders.write_jsonl(path, ROWS)
    elif ending == ".json":
        path.write_text(json.dumps(ROWS))
    elif ending == ".csv":
        path.write_text('a,lang\n1,python\n2,rust\n"é\n3",python\n', encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_form_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    assert load_rows(str(written(tmp_path, ending))) == ROWS


def test_a_csv_field_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    text = "a long, long story. " * 10_000
    (tmp_path / "book.csv").write_text(f'a,b\n"{text}",2\n', encoding="utf-8")
    assert load_rows(str(tmp_path / "book.csv")) == [{"a": text, "b": "2"}]


def test_rows_are_counted_after_the_filter(tmp_path: Path) -> None:
    path = str(written(tmp_path, ".jsonl"))
    assert load_rows(path, rows=2) == ROWS[:2]
    assert load_rows(path, rows=2, filter={"lang": "python"}) == [ROWS[0], ROWS[2]]


def refused(path: Path | str, **options: Any) -> SokaError:
    with pytest.raises(SokaError) as failure:
        load_rows(str(path), **options)
    assert failure.value.exit_code is ExitCode.DATA
    assert failure.value.hint
    return failure.value


@pytest.mark.parametrize("name", ["absent.jsonl", "./absent", "some/deep/absent.parquet"])
def test_a_missing_file_is_never_asked_of_the_hub(name: str) -> None:
    assert refused(name).where == name


def test_a_filter_that_nothing_passes_names_the_values_there_are(tmp_path: Path) -> None:
    assert "python, rust" in refused(written(tmp_path, ".jsonl"), filter={"lang": "ada"}).why


def test_a_filter_on_a_missing_column_names_the_columns(tmp_path: Path) -> None:
    assert "a, lang" in refused(written(tmp_path, ".jsonl"), filter={"language": "ada"}).why


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl:2"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', "x.jsonl:2"),
        ("x.jsonl", b'{"a": "\xff"}\n', "x.jsonl"),
        ("x.json", b'{"a": 1}', "x.json"),
        ("x.csv", b"a,b\n1,2,3\n", "x.csv:2"),
        ("x.parquet", b"PAR1 no more", "x.parquet"),
        ("x.txt", b"hello", "x.txt"),
        ("x.jsonl", b"\n\n", "x.jsonl"),
    ],
)
def test_damage_is_named_with_its_place(name: str, content: bytes, place: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert place in refused(tmp_path / name).where


def test_a_hub_name_without_a_network_says_so() -> None:
    with pytest.raises(SokaError) as failure:
        load_rows("soka-nobody/absent-data", offline=True)
    assert failure.value.exit_code in (ExitCode.ENVIRONMENT, ExitCode.DATA)
    assert failure.value.hint


def test_a_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = builders.gsm8k_file(tmp_path, 3, "a.jsonl")
    second = builders.gsm8k_file(tmp_path, 3, "b.jsonl")
    third = builders.gsm8k_file(tmp_path, 4, "c.jsonl")
    assert source_digest(str(first)) == source_digest(str(second)) != source_digest(str(third))
    assert source_digest("openai/gsm8k") is None


def test_the_real_files_are_read_whole() -> None:
    assert len(load_rows(str(builders.shared_folder("data", "gsm8k", "train.jsonl")))) == 7473
    assert len(load_rows(str(builders.shared_folder("data", "mbpp", "sanitized-mbpp.json")))) == 371
