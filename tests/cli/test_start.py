"""What the command line costs before it does anything, and what it says of itself."""

import subprocess
import sys

import pytest

from soka_cli import __version__
from soka_cli.cli.app import main
from soka_cli.cli.commands import app
from soka_cli.errors import ExitCode

VERBS = [command.name for command in app.registered_commands]
CONTRACT = {
    "plan",
    "decompose",
    "train",
    "eval",
    "score",
    "generate",
    "merge",
    "export",
    "report",
    "compare",
    "sweep",
    "run",
    "demo",
    "doctor",
    "recipes",
    "clean",
}
HEAVY = ["torch", "transformers", "peft", "datasets", "accelerate", "evaluate", "matplotlib", "numpy", "pydantic", "yaml"]


def test_every_verb_of_this_version_is_there() -> None:
    assert set(VERBS) == CONTRACT


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_that_use_the_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text and f"soka {verb}" in text.split("Examples:")[1]


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    probe = f"import sys, soka_cli.cli.app; print([name for name in {HEAVY[:-2]} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipe_and_run_load_nothing_heavy() -> None:
    modules = "soka_cli.recipe.load, soka_cli.run.stage, soka_cli.run.environment, soka_cli.tasks.gsm8k"
    probe = f"import sys, {modules}; print([name for name in {HEAVY[:-2]} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"soka {__version__}\n"


MISTAKES = [
    ["trian"],
    ["train", "--recipy", "x"],
    ["eval", "--show", "many"],
    ["score", "file.jsonl"],
    ["train"],
    ["recipes", "show"],
    ["merge", "--check", "x"],
]


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistaken_command_line_exits_with_2(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(words) == ExitCode.USAGE
