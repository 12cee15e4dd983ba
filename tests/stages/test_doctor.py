import json
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.sandbox.isolation import Isolation
from soka_cli.stages import doctor as stage
from soka_cli.stages import installed
from soka_cli.stages.context import StageContext
from soka_cli.stages.doctor import doctor
from soka_cli.stages.installed import Package, packages
from tests import builders


def context_for(folder: Path, model: Path | str, **sections: Any) -> StageContext:
    mapping = builders.recipe_mapping(model, builders.gsm8k_file(folder), **sections)
    return StageContext(load_recipe(builders.write_recipe(folder / "tiny.yaml", mapping)), RunLayout(folder / "runs/tiny"))


def checks_by_name(outcome: Any) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in outcome.figures["checks"]}


def test_the_machine_alone_is_described_without_failing() -> None:
    outcome = doctor()
    json.dumps(outcome.figures, allow_nan=False)
    assert set(checks_by_name(outcome)) >= {"packages", "device", "memory", "disk", "model cache", "data cache", "temporary files"}
    assert checks_by_name(outcome)["packages"]["status"] in ("ok", "warn")


def test_a_device_that_is_not_there_is_said_and_fails_no_machine() -> None:
    check = checks_by_name(doctor(device="cuda:99"))["device"]
    assert check["status"] == "fail" and check["hint"]


def test_the_packages_are_those_of_our_own_metadata_without_the_tools_of_development() -> None:
    found = {package.name: package for package in packages()}
    assert found["torch"].extra == "" and found["torch"].installed is not None
    assert found["bitsandbytes"].extra == "quant"
    assert "pytest" not in found


def test_a_constraints_file_gives_the_tested_versions(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# tested\ntorch==2.13.0\nHuggingface_Hub==2.4.0  # hub\nfree>=1\n")
    assert installed.tested_versions(tmp_path / "constraints.txt") == {"torch": "2.13.0", "huggingface-hub": "2.4.0"}
    assert installed.tested_versions(tmp_path / "none.txt") == {}


@pytest.mark.parametrize(
    ("package", "problem", "untested"),
    [
        (Package("torch", "", ">=2.8,<2.14", "2.13.0+cu130", "2.13.0"), "", False),
        (Package("torch", "", ">=2.8,<2.14", "2.12.0", "2.13.0"), "", True),
        (Package("torch", "", ">=2.8,<2.14", "2.15.0", "2.13.0"), "2.15.0 is outside >=2.8,<2.14", True),
        (Package("torch", "", ">=2.8,<2.14", None, "2.13.0"), "not installed", False),
        (Package("wandb", "trackers", ">=0.20", None, None), "", False),
        (Package("wandb", "trackers", ">=0.20", "0.1", None), "0.1 is outside >=0.20", False),
    ],
)
def test_a_version_is_a_problem_or_merely_untested(package: Package, problem: str, untested: bool) -> None:
    assert (package.problem, package.untested) == (problem, untested)


def test_a_missing_package_fails_the_check_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "package_version", lambda name: None if name == "peft" else "2.9")
    check = stage.package_check(packages())
    assert check.status == "fail" and "peft: not installed" in check.detail


def test_a_package_that_cannot_be_imported_is_said_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(choice: str) -> str:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(stage, "find_device", broken)
    check = checks_by_name(doctor())["device"]
    assert check["status"] == "fail" and "torch" in check["detail"]


def test_a_cache_that_cannot_be_written_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage.os, "access", lambda path, mode: False)
    check = stage.cache_check("model cache", tmp_path, "HF_HOME")
    assert check.status == "warn" and "HF_HOME" in check.hint


def test_the_sandbox_is_tried_and_what_it_does_not_stop_is_said() -> None:
    check = checks_by_name(doctor())["sandbox"]
    assert "Does not stop" in check["detail"] or "not judged here" in check["detail"]
    assert check["status"] == "ok" or "bubblewrap" in check["hint"]


def test_a_machine_without_a_sandbox_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Isolation(None, {}, (("bubblewrap", "bwrap is not installed"),))
    monkeypatch.setattr(stage, "find_isolation", lambda: none)
    check = stage.sandbox_check()
    assert (check.status, check.name) == ("warn", "sandbox")
    assert "bwrap is not installed" in check.detail and "apt-get install bubblewrap" in check.hint


def test_a_recipe_that_can_run_here_passes(tmp_path: Path, llama_folder: Path) -> None:
    outcome = doctor(context_for(tmp_path, llama_folder), offline=True)
    found = checks_by_name(outcome)
    assert (found["model"]["status"], found["data.train.path"]["status"]) == ("ok", "ok")


@pytest.mark.parametrize(
    ("model", "data", "named"),
    [
        ("no-such-owner/no-such-model", None, "model: no-such-owner/no-such-model"),
        ("./no-such-folder", None, "no-such-folder"),
        (None, "gone.jsonl", "data.train.path: there is no file"),
    ],
)
def test_a_recipe_that_cannot_run_here_is_exit_3_with_what_stands_against_it(
    tmp_path: Path, llama_folder: Path, model: str | None, data: str | None, named: str
) -> None:
    source = {"train": {"path": str(tmp_path / data), "task": "gsm8k"}} if data else {}
    with pytest.raises(SokaError) as caught:
        doctor(context_for(tmp_path, model or llama_folder, data=source), offline=True)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert named in caught.value.why
    assert caught.value.hint


def test_a_recipe_whose_programs_nothing_isolates_cannot_run_here(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "find_isolation", lambda: Isolation(None, {}, ()))
    with pytest.raises(SokaError) as caught:
        doctor(context_for(tmp_path, llama_folder, eval=[{"task": "humaneval", "path": str(tmp_path / "tiny.yaml")}]), offline=True)
    assert "humaneval runs model-written programs" in caught.value.why
