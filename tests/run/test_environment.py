import json

import pytest

from soka_cli import __version__
from soka_cli.run.environment import describe_environment, package_version


def test_the_environment_is_plain_json_with_versions_and_what_the_stage_adds() -> None:
    described = json.loads(json.dumps(describe_environment({"device": "cpu", "seed": 3}), allow_nan=False))
    assert described["soka"] == __version__
    assert described["packages"]["pydantic"] == package_version("pydantic")
    assert described["memory_bytes"] > 0 and described["processors"] >= 1
    assert (described["device"], described["seed"]) == ("cpu", 3)


def test_no_environment_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_for_this_test")
    assert "hf_secret_for_this_test" not in json.dumps(describe_environment())


def test_an_absent_package_has_no_version() -> None:
    assert package_version("no-such-distribution-of-ours") is None
