"""The whole pipeline in two processes, through the real launcher: the stages that can be are shared out, the others are done once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from soka_cli.errors import ExitCode
from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest
from soka_cli.stages.run import run
from tests.builders import gsm8k_file, recipe_mapping, stage_context, tiny_model_folder
from tests.cli.test_train_processes import assert_alike
from tests.launched import environment

SHARED = ("decompose", "train", "eval/gsm8k-plain-base", "eval/gsm8k-plain-adapter", "eval/gsm8k-plain-merged")


@pytest.mark.slow
def test_a_run_in_two_processes_does_what_one_does(tmp_path: Path) -> None:
    entry = {"task": "gsm8k", "path": str(gsm8k_file(tmp_path, 6, "test.jsonl")), "max_new_tokens": 8, "batch_size": 2}
    mapping = recipe_mapping(tiny_model_folder(tmp_path / "base"), gsm8k_file(tmp_path), train={"micro_batch_size": 1}, eval=[entry])
    alone = stage_context(tmp_path, mapping, run="alone")
    stages = [one["stage"] for one in run(alone).figures["stages"]]
    words = ["run", "-r", str(tmp_path / "alone.yaml"), "-d", str(tmp_path / "two"), "--device", "cpu", "--json", "--num-processes", "2"]
    done = subprocess.run([sys.executable, "-m", "soka_cli", *words], env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    said = json.loads(done.stdout)
    assert said["status"] == "done" and [one["stage"] for one in said["stages"]] == stages
    two = RunLayout(tmp_path / "two")
    manifest = Manifest.read(two.manifest)
    assert list(manifest.stages) == list(Manifest.read(alone.layout.manifest).stages)
    assert {record.status for record in manifest.stages.values()} == {"done"}
    assert [json.loads(two.environment(stage).read_text())["processes"] for stage in SHARED] == [2] * len(SHARED)
    assert_alike(alone.layout, two)
