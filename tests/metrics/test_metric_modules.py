"""The metrics as modules that `evaluate` loads."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest

from soka_cli import metrics
from soka_cli.errors import ExitCode, SokaError
from soka_cli.metrics import load, module_folder, module_names

CASES: dict[str, tuple[list[str], list[str], dict[str, float]]] = {
    "gsm8k": (["#### 5", "It is 5.0", "none"], ["5", "5", "6"], {"strict": 1 / 3, "flexible": 1 / 3, "numeric": 2 / 3}),
    "competition_math": ([r"\boxed{\frac14}", "The answer is: 3", r"\boxed{2}"], ["0.25", "3", "4"], {"exact": 1 / 3, "symbolic": 2 / 3}),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


@pytest.fixture(params=sorted(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(module: Any, name: str) -> None:
    predictions, references, wanted = CASES[name]
    found = module.compute(predictions=predictions, references=references)
    assert {metric: found[metric] for metric in wanted} == pytest.approx(wanted)
    for metric, value in wanted.items():
        assert found[f"{metric}_stderr"] == pytest.approx(math.sqrt(value * (1 - value) / 2))
    assert all(type(value) is float for value in found.values())


@pytest.mark.slow
def test_each_module_loads_by_its_path_without_a_network_or_a_home(tmp_path: Path) -> None:
    program = (
        "import evaluate, json, socket, sys\n"
        "socket.socket.connect = lambda *_: sys.exit('the network was asked')\n"
        "cases = json.load(sys.stdin)\n"
        "print(json.dumps({folder: evaluate.load(folder).compute(**case) for folder, case in cases.items()}))\n"
    )
    cases = {str(module_folder(name)): {"predictions": case[0], "references": case[1]} for name, case in CASES.items()}
    caches = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_METRICS_CACHE": str(tmp_path / "metrics"), "HOME": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(cases), env=os.environ | caches, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert {folder.rsplit("/", 1)[1]: figures for folder, figures in found.items()} == {
        name: pytest.approx(load(name).compute(predictions=case[0], references=case[1])) for name, case in CASES.items()
    }
    assert not (tmp_path / "none").exists()


def test_a_module_of_the_users_own_stays_loaded_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    source = (module_folder("gsm8k") / "gsm8k.py").read_text(encoding="utf-8")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "theirs.py").write_text(source, encoding="utf-8")
    for _ in range(2):
        theirs = evaluate.load(str(tmp_path / "theirs"), cache_dir=str(tmp_path))
        assert theirs.compute(predictions=["#### 5"], references=["5"])["strict"] == 1.0
        assert load("competition_math").compute(predictions=["\\boxed{5}"], references=["5"])["exact"] == 1.0
        assert isinstance(theirs, sys.modules[type(theirs).__module__].Gsm8k)


def test_load_leaves_the_users_cache_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    check(load(name), name)
    assert not list(tmp_path.iterdir())
    assert tmp_path / "modules" == evaluate.config.HF_MODULES_CACHE


def test_a_protocol_adds_its_readings(tmp_path: Path) -> None:
    found = load("gsm8k").compute(predictions=["The answer is: 4.6"], references=["5"], protocol="pissa")
    assert (found["metamath"], found["metamath_stderr"], found["numeric"]) == (1.0, None, 0.0)


def test_every_packaged_module_is_tried_here() -> None:
    assert set(CASES) <= set(module_names())
    assert {path.name for path in Path(metrics.__file__).parent.iterdir() if path.is_dir() and not path.name.startswith("_")} == set(
        module_names()
    )


def test_an_unknown_module_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(SokaError) as caught:
        load("rouge")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "gsm8k" in str(caught.value.hint)
