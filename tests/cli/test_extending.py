"""The programs of docs/extending.md, run as they stand there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders import REPOSITORY
from tests.pages import files, page

CITIES = {"France": "Paris", "Italy": "Rome", "Peru": "Lima", "Cuba": "Havana"}
QUICK = ("train.steps=2", "train.batch_size=4", "train.micro_batch_size=4", "train.eval_every=2", "train.save_every=2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's files, with rows for its task."""
    for name, text in files(page("extending.md")).items():
        (tmp_path / name).write_text(text)
    rows = "".join(json.dumps({"country": country, "capital": city}) + "\n" for country, city in CITIES.items())
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(rows)
    return tmp_path


def run(folder: Path, *words: str, code: int = 0) -> Any:
    """The JSON object that a command ends with; `words` begin with a file of the page, or -m soka_cli."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words, "--json"], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_page_has_a_program_for_each_kind() -> None:
    assert {"capitals.py", "near_first.py", "gain.py", "loha.yaml"} <= set(files(page("extending.md")))


def test_the_page_s_task_judges_completions(folder: Path) -> None:
    lines = [{"id": "1", "completion": " paris\nQuestion:", "gold": "Paris"}, {"id": "2", "completion": " Lyon", "gold": "Paris"}]
    (folder / "completions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scores = run(folder, "capitals.py", "score", "--task", "capitals", "completions.jsonl")
    assert scores["metrics"]["exact"]["value"] == 0.5 and scores["task"] == "capitals"


def test_the_page_s_recipe_of_it_is_one_for_the_program_alone(folder: Path) -> None:
    assert run(folder, "capitals.py", "recipes", "validate", "capitals.yaml")["valid"] == ["capitals.yaml"]
    assert "available: gsm8k" in run(folder, "-m", "soka_cli", "recipes", "validate", "capitals.yaml", code=2)["error"]["why"]


def test_the_page_s_rule_keeps_what_is_near_the_first_within_the_bounds(folder: Path) -> None:
    script = """
import json, torch, near_first
from soka_cli.kron import KronShape, RankRule, choose_rank
rule, sigma = RankRule("near-first", tau=0.8, max=4), torch.tensor([10.0, 9.0, 8.1, 3.0, 2.0], dtype=torch.float64)
chosen = [choose_rank(sigma, torch.full_like(sigma, bound), 300.0, rule, KronShape(9, 1, 9, 1)) for bound in (1e-9, 0.2)]
print(json.dumps([(one.rank, one.bound_by, one.ranks["near-first"]) for one in chosen]))
"""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [[3, "near-first", 3], [2, "unresolved", 2]]


@pytest.mark.slow
def test_the_page_s_task_goes_through_the_whole_pipeline(folder: Path) -> None:
    run(folder, "capitals.py", "run", "-r", "capitals.yaml", *QUICK, "data.validation=null")
    for kind in ("base", "adapter", "merged"):
        scores = json.loads((folder / "runs" / "capitals" / "eval" / f"capitals-plain-{kind}" / "scores.json").read_text())
        assert scores["items"] == len(CITIES) and set(scores["metrics"]) == {"exact"}


@pytest.mark.slow
def test_processes_that_the_program_starts_know_its_rule(folder: Path) -> None:
    rule = "adapter.rank={rule: near-first, tau: 0.8, max: 8}"
    run(folder, "near_first.py", "decompose", "-r", "demo.yaml", "-d", "runs/near", rule, "adapter.target_modules=[q_proj]")
    given = ("-r", "demo.yaml", "-d", "runs/two", rule, "adapter.target_modules=[q_proj]", "--num-processes", "2")
    run(folder, "near_first.py", "decompose", *given)
    one, two = (json.loads((folder / "runs" / name / "decompose" / "layers.json").read_text())["modules"] for name in ("near", "two"))
    assert [module["rank"] for module in one] == [module["rank"] for module in two]
    assert any(module["rank_bound_by"] == "near-first" for module in one)


@pytest.mark.slow
def test_the_page_s_method_goes_through_the_whole_pipeline(folder: Path) -> None:
    outcome = run(folder, "gain.py", "run", "-r", "gain.yaml", *QUICK, "eval.0.limit=2", "eval.0.max_new_tokens=8")
    assert outcome["agreement"]["gsm8k-plain"]["equal"] == 2
    run(folder, "gain.py", "merge", "--run", "runs/gain", "--dtype", "float32", "--force")  # the base is in fp16, whose rounding would show
    parity = json.loads((folder / "runs" / "gain" / "merge" / "parity.json").read_text())
    assert parity["max_abs_logit_error"] < 1e-4 and parity["top1_agreement"] == 1.0
