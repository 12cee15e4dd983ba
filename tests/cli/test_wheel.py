"""The wheel carries recipes, configs and the demo, and works from another folder in an environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from soka_cli.stages import installed as requirements
from tests.builders import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the built wheel in it; its dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf8")
    return environment / "bin"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_installed_package_is_the_wheel_and_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, str(installed / "python"), "-c", "import soka_cli; print(soka_cli.__file__)")
    assert str(installed.parent) in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo.yaml", "gsm8k.yaml", "math.yaml", "mbpp.yaml"])
def test_a_packaged_recipe_plans_from_another_folder(installed: Path, tmp_path: Path, name: str) -> None:
    done = run(installed, tmp_path, str(installed / "soka"), "plan", "--recipe", name, "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_packaged_model_decomposes_from_another_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, str(installed / "soka"), "decompose", "--recipe", "demo.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "decompose" / "factors.safetensors").is_file()


@pytest.mark.slow
def test_the_installed_package_knows_the_versions_that_were_tested(installed: Path, tmp_path: Path) -> None:
    program = "import json; from soka_cli.stages.installed import packages; print(json.dumps({one.name: one.tested for one in packages()}))"
    done = run(installed, tmp_path, str(installed / "python"), "-c", program)
    assert json.loads(done.stdout)["torch"] == requirements.tested_versions(REPOSITORY / "constraints.txt")["torch"]
