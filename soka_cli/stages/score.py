"""Judge completions that exist already, without a model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.digest import file_digest
from soka_cli.run.lines import to_line
from soka_cli.run.reporter import Reporter, SilentReporter
from soka_cli.run.write import atomic_file, write_json
from soka_cli.stages.evaluation_tables import group_tables
from soka_cli.stages.execution import execution
from soka_cli.stages.outcome import Cell, Outcome, Table
from soka_cli.stages.scores import Prediction, judged_all, summarise
from soka_cli.tasks.base import Example, Task, groups_of, task_named
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.pass_at_k import pass_at_k
from soka_cli.tasks.program import Postprocessing
from soka_cli.tasks.protocol import protocol_named, stops_of


def score(
    file: Path,
    task: str,
    protocol: str | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    *,
    pass_at: Sequence[int] = (),
    unsafe: bool = False,
) -> Outcome:
    """Judge a file of JSON lines `{id, completion, gold}`; `gold` is the bare answer, or in its place the columns of the tests.

    Lines that share an id are samples of one item, numbered as they come. A line's `solution`, if it has one, is what a reading of whole
    solutions compares with. Without `protocol` the stop strings that all protocols know
    end what a tolerant metric reads. Fields that need a model or a prompt are null.

    Args:
        out: folder for predictions.jsonl and scores.json; None writes nothing.
        pass_at: further k for pass@k, of tasks whose answers are programs.
        unsafe: whether programs run even where nothing isolates them.

    Raises:
        SokaError: exit 2 for an unknown task or protocol, a k beyond an item's samples, or an `out` that would overwrite the input;
            exit 3 for programs that nothing here isolates; exit 4 naming a damaged line.
    """
    judge, stops = task_named(task), stops_of(protocol, task)
    asked = protocol_named(protocol, task) if protocol is not None else None
    readings = asked.readings if asked is not None else ()
    metrics = (*judge.metrics, *further_draws(judge, pass_at), *readings)
    targets = (out / "predictions.jsonl", out / "scores.json") if out is not None else ()
    if any(target.resolve() == file.resolve() for target in targets):
        raise SokaError(
            "The scores would overwrite the file that is judged.",
            where=f"--out {out}",
            hint="name another folder: --out scores",
            exit_code=ExitCode.USAGE,
        )
    lines = read_completions(file, judge)
    for k in pass_at:
        pass_at_k(min(Counter(line["id"] for line in lines).values()), 0, k)
    reading = Reading(stops, readings, asked.postprocessing if asked is not None else "span", unsafe)
    predictions = judge_lines(judge, lines, reading, reporter or SilentReporter())
    scores = {
        "task": judge.name,
        "protocol": protocol,
        "model": None,
        **summarise(predictions, metrics, {line["id"]: line["groups"] for line in lines}),
        "template_sha256": None,
        "data_sha256": file_digest(file),
        "adapter_sha256": None,
        "decoding": None,
        "stops": list(stops),
        **execution(judge, predictions, unsafe),
        "seconds": None,
        "tokens_per_s": None,
    }
    if targets:
        with atomic_file(targets[0]) as staged:
            staged.write_bytes(b"".join(to_line(row) for row in predictions))
        write_json(targets[1], scores)
    return Outcome(
        stage="score",
        status="done",
        figures=scores | ({"out": str(out)} if out is not None else {}),
        tables=(score_table(judge, scores), *group_tables(judge.name, scores)),
        notes=(f"written: {targets[0]} and {targets[1].name}",) if targets else (),
    )


@dataclass(frozen=True)
class Reading:
    """How completions are read: where they are cut, what is read beside the metrics, how a program is found and whether it may run."""

    stops: Sequence[str]
    readings: Sequence[str]
    postprocessing: Postprocessing
    unsafe: bool


def further_draws(task: Task, pass_at: Sequence[int]) -> list[str]:
    """The metrics pass@k for k beyond 1."""
    if pass_at and not isinstance(task, CodeTask):
        raise SokaError(
            f"Task {task.name} has no pass@k.",
            where=f"--pass-at {pass_at[0]}",
            why="it is of tasks whose answers are programs",
            hint="drop --pass-at, or score mbpp or humaneval",
            exit_code=ExitCode.USAGE,
        )
    return [f"pass@{k}" for k in dict.fromkeys(pass_at) if k != 1]


def read_completions(file: Path, task: Task) -> list[dict[str, Any]]:
    """The lines of a file: id, completion and gold as text, and groups; SokaError (exit 4) naming the first that is not so."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise bad_file(str(file), getattr(error, "strerror", None) or str(error), task) from error
    rows = [read_line(line, f"{file}:{number}", task) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not rows:
        raise bad_file(str(file), "the file has no lines", task)
    return rows


def read_line(line: str, where: str, task: Task) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad_file(where, f"not JSON: {error}", task) from error
    if not isinstance(row, dict):
        raise bad_file(where, "the line is no JSON object", task)
    if absent := [name for name in ("id", "completion", *gold_columns(row, task)) if row.get(name) is None]:
        raise bad_file(where, f"it lacks {', '.join(absent)}; it has {', '.join(row) or 'nothing'}", task)
    if not isinstance(row["completion"], str):
        raise bad_file(where, "its completion is no text", task)
    if "gold" not in row and isinstance(task, CodeTask):
        row["gold"] = task.exercise(row, where).to_text()
    if wrong := [name for name in ("id", "gold") if not isinstance(row[name], str | int | float) or isinstance(row[name], bool)]:
        raise bad_file(where, f"its {wrong[0]} is neither text nor a number", task)
    solution = row.get("solution", "")
    if not isinstance(solution, str):
        raise bad_file(where, "its solution is no text", task)
    told = {name: speakable(str(row[name])) for name in ("id", "completion", "gold")}
    return told | {"solution": speakable(solution), "groups": groups_of(row)}


def gold_columns(row: dict[str, Any], task: Task) -> tuple[str, ...]:
    """The columns that say what is right: gold, or for programs the tests."""
    return task.gold_fields if isinstance(task, CodeTask) and "gold" not in row else ("gold",)


def speakable(text: str) -> str:
    """The text with half surrogates, which JSON can escape and UTF-8 can't hold, replaced."""
    return text.encode("utf-8", "replace").decode()


def bad_file(where: str, why: str, task: Task) -> SokaError:
    lines = {
        "mbpp": '{"id": "11", "completion": "def f(x): ...", "test_list": ["assert f(1) == 2"], "test_setup_code": ""}',
        "humaneval": '{"id": "HumanEval/0", "completion": "...", "prompt": "def f(x):...", "entry_point": "f", "test": "def check(f):..."}',
    }
    line = lines.get(task.name, '{"id": "0", "completion": "...#### 42", "gold": "42"}')
    return SokaError(
        "The completions can't be read.", where=where, why=why, hint=f"give one JSON object a line: {line}", exit_code=ExitCode.DATA
    )


def judge_lines(task: Task, lines: Sequence[dict[str, Any]], reading: Reading, reporter: Reporter) -> list[Prediction]:
    """Prediction rows of completions without a prompt or a model."""
    answers = [(line["completion"], Example(id=line["id"], prompt="", target=line["solution"], gold=line["gold"])) for line in lines]
    with reporter.task(f"score {task.name}", total=len(lines), unit="completions") as progress:
        ends = judged_all(
            task,
            answers,
            reading.stops,
            reading.readings,
            reading.postprocessing,
            unsafe=reading.unsafe,
            told=lambda: progress.advance(1),
        )
    seen: Counter[str] = Counter()
    predictions: list[Prediction] = []
    for line, end in zip(lines, ends, strict=True):
        start = {"id": line["id"], "sample": seen[line["id"]], "prompt_sha256": None, "completion": line["completion"], "stop_reason": None}
        predictions.append(start | end)
        seen[line["id"]] += 1
    return predictions


def score_table(task: Task, scores: dict[str, Any]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple((metric, figure["value"], figure["stderr"]) for metric, figure in scores["metrics"].items())
    return Table(f"{task.name}: {scores['n']} completions of {scores['items']} items", ("metric", "value", "+-"), rows)
