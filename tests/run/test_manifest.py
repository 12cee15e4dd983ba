import json
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.manifest import SCHEMA_VERSION, Manifest, Output, StageRecord

RECORD = StageRecord(
    status="done",
    started="2026-01-01T00:00:00Z",
    finished="2026-01-01T00:01:00Z",
    seconds=60.0,
    command="soka train",
    inputs={"train": {"lr": 2e-05}},
    inputs_sha256="a" * 64,
    outputs=(Output(path="train/adapter/adapter_model.safetensors", sha256="b" * 64, bytes=3),),
)


def refusal(path: Path, value: Any) -> SokaError:
    path.write_text(json.dumps(value))
    with pytest.raises(SokaError) as caught:
        Manifest.read(path)
    assert caught.value.exit_code == ExitCode.RUN
    assert caught.value.where == str(path)
    assert caught.value.hint
    return caught.value


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = Manifest().with_stage("decompose", RECORD).with_stage("train", RECORD)
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_no_manifest_is_an_empty_one(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path / "manifest.json").stages == {}


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_schema_version_is_refused_by_name(tmp_path: Path, version: int) -> None:
    error = refusal(tmp_path / "manifest.json", {"schema_version": version, "written_by": "soka 9.1.0", "stages": {}, "future": 1})
    assert f"schema version {version}" in error.what and "soka 9.1.0" in error.why


@pytest.mark.parametrize("value", [[], {}, "text", {"schema_version": "1"}, {"schema_version": True}, {"schema_version": None}])
def test_a_manifest_without_a_version_is_damaged(tmp_path: Path, value: Any) -> None:
    assert "schema_version" in refusal(tmp_path / "manifest.json", value).why


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "finished"),
        ("inputs", []),
        ("seconds", "long"),
        ("outputs", [{"path": "a"}]),
        ("outputs", None),
        ("started", 5),
        ("extra", 1),
    ],
)
def test_a_damaged_record_is_named_by_stage_and_field(tmp_path: Path, field: str, value: Any) -> None:
    record = {**RECORD.model_dump(mode="json"), field: value}
    assert f"stages.train.{field}" in refusal(tmp_path / "manifest.json", {"schema_version": 1, "stages": {"train": record}}).why
