"""Judging completions that exist already."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import TASK_PROTOCOLS
from soka_cli.run.lines import read_lines
from soka_cli.sandbox import find_isolation
from soka_cli.sandbox.isolation import Isolation
from soka_cli.stages.score import score
from soka_cli.stages.scores import judged_all, summarise
from soka_cli.tasks.base import task_named
from soka_cli.tasks.protocol import protocol_named
from tests import builders


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def row(identity: Any, completion: str, gold: Any) -> dict[str, Any]:
    return {"id": identity, "completion": completion, "gold": gold}


def refused(file: Path, code: ExitCode, **options: Any) -> str:
    with pytest.raises(SokaError) as caught:
        score(file, **{"task": "gsm8k"} | options)
    assert caught.value.exit_code == code
    assert caught.value.hint
    return str(caught.value)


def test_a_file_is_judged_and_written_out(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "#### 18", "18"), row("b", "The answer is: 7", "7"), row(3, "no", 5))
    outcome = score(file, task="gsm8k", out=tmp_path / "out")
    rows = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [(one["id"], one["sample"], one["extracted"], one["gold"]) for one in rows] == [
        ("a", 0, "18", "18"),
        ("b", 0, "7", "7"),
        ("3", 0, None, "5"),
    ]
    assert {one["prompt_sha256"] for one in rows} == {one["stop_reason"] for one in rows} == {None}
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {name: metric["value"] for name, metric in scores["metrics"].items()} == {"strict": 1 / 3, "flexible": 2 / 3, "numeric": 2 / 3}
    assert [scores[name] for name in ("model", "template_sha256", "adapter_sha256", "decoding", "seconds", "tokens_per_s")] == [None] * 6
    assert outcome.figures["metrics"] == scores["metrics"]


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "#### 18", "18"))
    assert score(file, task="gsm8k").figures["metrics"]["strict"] == {"value": 1.0, "stderr": None}
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_lines_of_one_id_are_samples_of_one_item(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "#### 1", "1"), row("a", "#### 2", "1"), row("b", "#### 3", "3"))
    figures = score(file, task="gsm8k", out=tmp_path / "out").figures
    assert (figures["n"], figures["items"], figures["metrics"]["strict"]["value"]) == (3, 2, 0.75)
    assert [one["sample"] for one in read_lines(tmp_path / "out" / "predictions.jsonl")] == [0, 1, 0]


def test_the_protocols_stop_strings_decide_how_far_numeric_reads(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "#### 1\nProblem: next\n#### 2", "1"))
    numeric = [score(file, task="gsm8k", protocol=name).figures["metrics"]["numeric"]["value"] for name in (None, "plain", "pissa")]
    assert numeric == [1.0, 0.0, 0.0]


def test_a_protocols_readings_are_scored_beside_the_tasks_metrics(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "The answer is: 71.6", "72"))
    assert set(score(file, task="gsm8k").figures["metrics"]) == {"strict", "flexible", "numeric"}
    figures = score(file, task="gsm8k", protocol="metamath", out=tmp_path / "out").figures
    assert (figures["metrics"]["metamath"]["value"], figures["metrics"]["numeric"]["value"]) == (1.0, 0.0)
    assert read_lines(tmp_path / "out" / "predictions.jsonl")[0]["correct"]["metamath"] is True


def test_math_is_scored_by_subject_and_level_where_the_lines_name_them(tmp_path: Path) -> None:
    known = {"type": "Algebra", "level": "Level 1"}
    file = lines(
        tmp_path / "a.jsonl",
        row("a", "\\boxed{\\frac12}", "0.5") | known,
        row("b", "\\boxed{3}", "4") | known | {"level": "Level 2"},
        row("c", "no answer", "4"),
    )
    outcome = score(file, task="math", out=tmp_path / "out")
    groups = outcome.figures["groups"]
    assert {name: (one["items"], one["metrics"]["symbolic"]["value"]) for name, one in groups["level"].items()} == {
        "Level 1": (1, 1.0),
        "Level 2": (1, 0.0),
    }
    assert groups["subject"]["Algebra"]["metrics"]["exact"] == {"value": 0.5, "stderr": 0.5}
    assert [table.title for table in outcome.tables[1:]] == ["math by level", "math by subject"]
    rows = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [(one["extracted"], one.get("why")) for one in rows] == [("\\frac12", None), ("3", None), (None, "no answer found")]


def test_the_mean_over_items_is_not_the_mean_over_groups() -> None:
    rows = [{"id": str(index), "correct": {"x": index < 3}} for index in range(4)]
    groups = {"0": {"level": "a"}, "1": {"level": "a"}, "2": {"level": "a"}, "3": {"level": "b"}}
    found = summarise(rows, ("x",), groups)
    assert found["metrics"]["x"]["value"] == 0.75
    assert {name: one["metrics"]["x"]["value"] for name, one in found["groups"]["level"].items()} == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("values", [[0, 1], [1, 1, 1], [0, 1, 1, 0, 1, 0, 0]])
def test_the_standard_error_of_a_share_is_that_of_its_variance(values: list[int]) -> None:
    rows = [{"id": str(index), "correct": {"x": bool(value)}} for index, value in enumerate(values)]
    share, count = sum(values) / len(values), len(values)
    found = summarise(rows, ("x",))["metrics"]["x"]
    assert found["value"] == pytest.approx(share)
    assert found["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (count - 1)))


@pytest.mark.parametrize(
    "damage",
    [
        "not json",
        "[1]",
        "{}",
        '{"id": "a", "completion": "x"}',
        '{"id": "a", "completion": 3, "gold": "1"}',
        '{"id": [], "completion": "", "gold": "1"}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    assert "a.jsonl:2" in refused(lines(tmp_path / "a.jsonl", row("a", "", "1"), damage), ExitCode.DATA)


def test_an_absent_or_empty_file_is_a_data_error(tmp_path: Path) -> None:
    refused(tmp_path / "none.jsonl", ExitCode.DATA)
    refused(tmp_path, ExitCode.DATA)
    refused(lines(tmp_path / "a.jsonl"), ExitCode.DATA)


def test_an_unknown_task_or_protocol_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "", "1"))
    assert "gsm8k" in refused(file, ExitCode.USAGE, task="sudoku")
    assert "plain" in refused(file, ExitCode.USAGE, protocol="fancy")


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    file = lines(tmp_path / "predictions.jsonl", row("a", "#### 1", "1"))
    before = file.read_bytes()
    refused(file, ExitCode.USAGE, out=tmp_path)
    assert file.read_bytes() == before


def test_characters_that_utf8_cannot_hold_do_not_stop_the_judge(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", '{"id": "a", "completion": "\\ud800 #### 1", "gold": "1"}')
    assert score(file, task="gsm8k", out=tmp_path / "out").figures["metrics"]["strict"]["value"] == 1.0


# Programs


@pytest.fixture
def isolated() -> None:
    if find_isolation().layer is None:
        pytest.skip("nothing isolates programs here")


def mbpp_line(identity: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"id": identity, "completion": completion, "test_list": ["assert f(1) == 2", "assert f(2) == 3"], "test_setup_code": ""} | more


RIGHT, WRONG = "def f(x):\n    return x + 1\n", "def f(x):\n    return x\n"


def test_programs_are_run_and_counted(tmp_path: Path, isolated: None) -> None:
    chat = f"Sure:\n```python\n{RIGHT}```"
    file = lines(tmp_path / "a.jsonl", mbpp_line("1", RIGHT), mbpp_line("2", WRONG), mbpp_line("3", chat))
    outcome = score(file, task="mbpp", out=tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["metrics"]["pass@1"]["value"] == pytest.approx(2 / 3)
    assert scores["execution"]["verdicts"] == {"pass": 2, "fail": 1, "timeout": 0}
    assert scores["execution"]["layer"] == find_isolation().name and scores["execution"]["in_process"] == 0
    rows = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [(one["correct"], one["verdict"], one["mode"]) for one in rows] == [
        ({"pass@1": True}, "pass", "separate"),
        ({"pass@1": False}, "fail", "separate"),
        ({"pass@1": True}, "pass", "separate"),
    ]
    assert rows[2]["extracted"] == RIGHT and "f(1) == 2" in rows[1]["why"]
    assert outcome.figures["metrics"] == scores["metrics"]


def test_scored_programs_can_be_scored_again_from_their_predictions(tmp_path: Path, isolated: None) -> None:
    score(lines(tmp_path / "a.jsonl", mbpp_line("1", RIGHT), mbpp_line("2", WRONG)), task="mbpp", out=tmp_path / "out")
    again = score(tmp_path / "out" / "predictions.jsonl", task="mbpp")
    assert again.figures["metrics"]["pass@1"]["value"] == 0.5


def test_humaneval_lines_bring_their_prompt_and_test(tmp_path: Path, isolated: None) -> None:
    rows = builders.humaneval_rows(2)
    said = [
        {name: row[name] for name in ("prompt", "entry_point", "test")} | {"id": row["task_id"], "completion": row["canonical_solution"]}
        for row in rows
    ]
    said[1]["completion"] = "    return xs\n"
    found = score(lines(tmp_path / "a.jsonl", *said), task="humaneval", protocol="lm-eval").figures
    assert (found["metrics"]["pass@1"]["value"], found["items"]) == (0.5, 2)


def test_pass_at_k_is_that_of_each_items_samples(tmp_path: Path, isolated: None) -> None:
    file = lines(tmp_path / "a.jsonl", *(mbpp_line("1", text) for text in (RIGHT, WRONG, WRONG)), *(mbpp_line("2", WRONG),) * 3)
    metrics = score(file, task="mbpp", pass_at=[1, 2, 3]).figures["metrics"]
    assert {name: one["value"] for name, one in metrics.items()} == pytest.approx({"pass@1": 1 / 6, "pass@2": 1 / 3, "pass@3": 1 / 2})


def test_more_draws_than_samples_are_refused_before_anything_runs(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", mbpp_line("1", RIGHT), mbpp_line("1", RIGHT), mbpp_line("2", RIGHT))
    assert "pass@2" in refused(file, ExitCode.USAGE, task="mbpp", pass_at=[2])
    assert "no pass@k" in refused(lines(tmp_path / "b.jsonl", row("a", "", "1")), ExitCode.USAGE, pass_at=[2])


@pytest.mark.parametrize("absent", ["completion", "test_list", "id"])
def test_a_line_of_a_program_that_lacks_something_is_named(tmp_path: Path, absent: str) -> None:
    line = {name: value for name, value in mbpp_line("1", RIGHT).items() if name != absent}
    assert absent in refused(lines(tmp_path / "a.jsonl", line), ExitCode.DATA, task="mbpp")


def test_a_gold_that_holds_no_tests_is_a_data_error(tmp_path: Path) -> None:
    assert "no tests" in refused(lines(tmp_path / "a.jsonl", row("a", RIGHT, "3")), ExitCode.DATA, task="mbpp")


def test_the_postprocessing_is_the_protocols(tmp_path: Path, isolated: None) -> None:
    chat = f"Sure:\n```python\n{RIGHT}```"
    file = lines(tmp_path / "a.jsonl", mbpp_line("1", chat))
    values = {name: score(file, task="mbpp", protocol=name).figures["metrics"] for name in ("plain", "lm-eval", "pissa", "evalplus")}
    assert {name: one["pass@1"]["value"] for name, one in values.items()} == {"plain": 0, "lm-eval": 0, "pissa": 1, "evalplus": 1}
    assert values["pissa"]["pissa"]["value"] == 1


def test_programs_without_isolation_are_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Isolation(None, {}, (("bubblewrap", "bwrap is not installed"),))
    monkeypatch.setattr("soka_cli.sandbox.pool.find_isolation", lambda: none)
    file = lines(tmp_path / "a.jsonl", mbpp_line("1", RIGHT))
    assert "--unsafe-execution" in refused(file, ExitCode.ENVIRONMENT, task="mbpp", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert score(file, task="mbpp", unsafe=True).figures["metrics"]["pass@1"]["value"] == 1.0


MATH = [
    {"problem": "Solve.", "solution": "So $x=\\boxed{2}$ or $x=\\boxed{-3}$.", "level": "Level 1", "type": "Algebra"},
    {"problem": "Add.", "solution": "It is $\\frac{1}{2}+1=\\boxed{\\frac{3}{2}}$.", "level": "Level 2", "type": "Algebra"},
]
ROWS = {"gsm8k": builders.gsm8k_rows(2), "math": MATH, "mbpp": builders.mbpp_rows(2), "humaneval": builders.humaneval_rows(2)}


@pytest.mark.parametrize(("task", "protocol"), [(task, name) for task, names in TASK_PROTOCOLS.items() for name in names])
def test_what_eval_judged_is_judged_the_same_by_score(tmp_path: Path, task: str, protocol: str, isolated: None) -> None:
    judge, asked = task_named(task), protocol_named(protocol, task)
    examples = [judge.example(one, index) for index, one in enumerate(ROWS[task])]
    kinds = ["{target}", "The answer is: {gold}", "\\boxed{{{gold}}} USER: 7", "so $x = {gold}$", "```python\n{target}\n```", ""]
    kinds += ["Final Answer: The final answer is ${gold}$. I hope it is correct.", "{plain[1]}"]
    answers = [(kind.format(**vars(one)), one) for one in examples for kind in kinds]
    ends = judged_all(judge, answers, asked.stops, asked.readings, asked.postprocessing)
    told = [{"id": str(place), "completion": text, **end} for place, ((text, _), end) in enumerate(zip(answers, ends, strict=True))]
    score(lines(tmp_path / "a.jsonl", *told), task=task, protocol=protocol, out=tmp_path / "out")
    again = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [{name: found[name] for name in end} for found, end in zip(again, ends, strict=True)] == ends
    assert {metric for end in ends for metric, right in end["correct"].items() if right}


@pytest.mark.parametrize("protocol", ["pissa", "metamath"])
@pytest.mark.parametrize("task", ["gsm8k", "math"])
def test_the_fine_tuned_protocols_read_as_metamath_s_scripts_do(tmp_path: Path, task: str, protocol: str) -> None:
    file = lines(tmp_path / "a.jsonl", row("a", "The answer is: 72", "72"), row("b", "\\boxed{72} #### 72", "72"))
    metrics = score(file, task=task, protocol=protocol).figures["metrics"]
    assert metrics["metamath"]["value"] == 0.5
    assert all(metrics[name]["value"] == 1.0 for name in ({"gsm8k": ("numeric",), "math": ("exact", "symbolic")}[task]))
