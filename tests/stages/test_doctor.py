import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from soka_cli.cli.commands import app
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.sandbox.isolation import Isolation
from soka_cli.stages import doctor as stage
from soka_cli.stages import doctor_hub, doctor_processes, doctor_sources, doctor_training, doctor_verbs, installed
from soka_cli.stages.context import StageContext
from soka_cli.stages.doctor import doctor
from soka_cli.stages.doctor_sources import Source
from soka_cli.stages.installed import Package, packages
from soka_cli.stages.plan import plan
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
    assert installed.tested_versions(None) == {}


def test_a_misfitting_extra_is_named_in_what_to_install() -> None:
    quant, odd = Package("bitsandbytes", "quant", ">=0.49", "0.50", None), Package("wandb", "trackers", ">=0.20", "0.1", None)
    assert stage.optional_check([quant, odd]).hint == "pip install --upgrade 'soka-cli[trackers]'"


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


def test_the_hub_is_never_asked_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_hub, "unreachable", lambda address: pytest.fail("the Hub was asked"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert "offline" in doctor_hub.hub_check(offline=True).detail


def test_of_an_account_only_that_there_is_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secretsecret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor_hub, "unreachable", lambda address: "")
    check = doctor_hub.hub_check(offline=False)
    assert check.status == "ok" and "an account is logged in" in check.detail and "secret" not in str(check)


def test_a_hub_that_does_not_answer_is_warned_of_and_keeps_a_recipe_that_needs_it_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor_hub, "unreachable", lambda address: "ConnectTimeout")
    check = doctor_hub.hub_check(offline=False)
    assert check.status == "warn" and "ConnectTimeout" in check.detail and "HTTPS_PROXY" in check.hint
    with pytest.raises(SokaError) as caught:
        doctor(context_for(tmp_path, "no-such-owner/no-such-model"))
    assert "the Hub does not answer" in caught.value.why and caught.value.exit_code == ExitCode.ENVIRONMENT


def hub_source(option: str = "data.train.path") -> Source:
    return Source(option, "no-such-owner/no-such-set", None, None, "train")


def test_a_data_set_that_neither_the_cache_nor_the_hub_has_keeps_a_recipe_from_running(tmp_path: Path, llama_folder: Path) -> None:
    context = context_for(tmp_path, llama_folder, data={"train": {"path": "no-such-owner/no-such-set", "task": "gsm8k"}})
    with pytest.raises(SokaError) as caught:
        doctor(context, offline=True)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "data.train.path: no-such-owner/no-such-set" in caught.value.why and "not in the data cache" in caught.value.why
    assert doctor_sources.source_check(hub_source(), reachable=True).status == "ok"


def test_a_data_set_in_the_cache_is_enough_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list(builders.gsm8k_rows(3))
    asked: list[bool] = []

    def cached(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        return rows

    monkeypatch.setattr(datasets, "load_dataset", cached)
    check = doctor_sources.source_check(hub_source(), reachable=False)
    assert check.status == "ok" and "in the data cache" in check.detail
    assert asked == [True]  # the cache alone is looked into, the network is not


@pytest.mark.slow
def test_processes_that_can_meet_add_up_their_numbers() -> None:
    check = doctor_processes.process_check(2)
    assert check.status == "ok" and "2 processes added up" in check.detail


def test_processes_that_do_not_come_together_are_a_failure_with_what_they_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_processes, "HANDSHAKE", "soka_cli.no_such_module")
    check = doctor_processes.process_check(2)
    assert check.status == "fail" and "did not come together" in check.detail and "GLOO_SOCKET_IFNAME" in check.hint


def test_a_step_that_no_memory_here_holds_is_exit_3_and_one_that_is_short_a_warning(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_training, "memory_of", lambda device: ("cuda:0", 10**12, 10))
    assert checks_by_name(doctor(context_for(tmp_path, llama_folder), offline=True))["training memory"]["status"] == "warn"
    monkeypatch.setattr(doctor_training, "memory_of", lambda device: ("cuda:0", 1000, 10))
    with pytest.raises(SokaError) as caught:
        doctor(context_for(tmp_path, llama_folder), offline=True)
    assert "training memory" in caught.value.why and caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_start_that_no_memory_here_holds_is_exit_3_though_training_fits(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = {"rank": {"rule": "fixed", "value": 1}, "init": "early-update", "init_steps": 2, "init_lr": 1e-3, "init_rows": 4}
    context = context_for(tmp_path, llama_folder, adapter=adapter)
    figures = plan(replace(context, reporter=SilentReporter(), offline=True)).figures
    training, start = figures["memory"]["from"]["total"], figures["start_memory"]["total"]
    assert training < start
    between = (training + start) // 2
    monkeypatch.setattr(doctor_training, "memory_of", lambda device: ("cuda:0", between, between))
    with pytest.raises(SokaError) as caught:
        doctor(context, offline=True)
    assert "start's memory: init early-update" in caught.value.why and "training memory" not in caught.value.why
    monkeypatch.setattr(doctor_training, "memory_of", lambda device: ("cuda:0", start, between))
    assert checks_by_name(doctor(context, offline=True))["start's memory"]["status"] == "warn"


def test_a_missing_tracker_keeps_a_recipe_from_running(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soka_cli.stages.trackers.find_spec", lambda name: None)
    context = context_for(tmp_path, llama_folder, train={"steps": 2, "trackers": ["wandb"]})
    with pytest.raises(SokaError) as caught:
        doctor(context, offline=True)
    assert "train.trackers" in caught.value.why and "wandb" in caught.value.why


def test_without_bitsandbytes_it_is_said_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_training, "version_of", lambda name: None)
    check = doctor_training.quantization_check()
    assert check.status == "ok" and "bases stay whole" in check.detail and "soka-cli[quant]" in check.hint


def test_each_verb_is_told_what_it_will_do_here(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_verbs, "find_isolation", lambda: Isolation(None, {}, ()))
    verbs = doctor(context_for(tmp_path, llama_folder), offline=True, device="cpu").figures["verbs"]
    every = {command.name for command in app.registered_commands} - {"doctor"}
    assert every <= {name for names in verbs for name in names.split(", ")}
    assert "cpu" in verbs["train"] and str(llama_folder) in verbs["decompose"]
    assert "refuses mbpp and humaneval" in verbs["score"]
    assert "no device" in doctor(device="cuda:99", offline=True).figures["verbs"]["train"]
