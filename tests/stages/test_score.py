"""Judging completions that exist already."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.lines import read_lines
from soka_cli.stages.score import score
from soka_cli.stages.scores import summarise


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
    assert "gsm8k" in refused(file, ExitCode.USAGE, task="mbpp")
    assert "plain" in refused(file, ExitCode.USAGE, protocol="fancy")


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    file = lines(tmp_path / "predictions.jsonl", row("a", "#### 1", "1"))
    before = file.read_bytes()
    refused(file, ExitCode.USAGE, out=tmp_path)
    assert file.read_bytes() == before


def test_characters_that_utf8_cannot_hold_do_not_stop_the_judge(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", '{"id": "a", "completion": "\\ud800 #### 1", "gold": "1"}')
    assert score(file, task="gsm8k", out=tmp_path / "out").figures["metrics"]["strict"]["value"] == 1.0
