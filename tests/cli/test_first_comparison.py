"""A newcomer goes from `soka recipes` to a comparison of two methods with four commands."""

import json
import shlex
from pathlib import Path

import pytest

from soka_cli.cli.app import main
from soka_cli.stages.recipes import FIRST_COMPARISON
from tests.pages import page, soka_commands

QUICK = ("train.steps=4", "train.batch_size=4", "train.micro_batch_size=4", "train.eval_every=2", "train.save_every=4", "eval.0.limit=4")


def test_soka_recipes_names_the_three_that_follow_and_the_cookbook_all_four(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert all(command in told for command in FIRST_COMPARISON)
    words = [shlex.split(command)[1:] for command in ("soka recipes", *FIRST_COMPARISON)]
    assert soka_commands(page("cookbook.md"))[:4] == words


@pytest.mark.slow
def test_they_end_in_a_fair_comparison_of_two_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *runs, last = (shlex.split(command)[1:] for command in FIRST_COMPARISON)
    for words in runs:
        assert main([*words, *QUICK, "--quiet"]) == 0
    assert main([*last, "--quiet"]) == 0
    found = json.loads((tmp_path / "runs" / "comparison" / "compare.json").read_text())
    assert [run["method"] for run in found["runs"]] == ["soka", "lora"]
    assert (tmp_path / "runs" / "comparison" / "compare.html").is_file()
