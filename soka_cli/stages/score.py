"""Judge completions that exist already, without a model."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.digest import file_digest
from soka_cli.run.lines import to_line
from soka_cli.run.reporter import Reporter, SilentReporter
from soka_cli.run.write import atomic_file, write_json
from soka_cli.stages.evaluation_tables import group_tables
from soka_cli.stages.outcome import Cell, Outcome, Table
from soka_cli.stages.scores import Prediction, judged, summarise
from soka_cli.tasks.base import Example, Task, groups_of, task_named
from soka_cli.tasks.protocol import protocol_named, stops_of

NEEDED = ("id", "completion", "gold")


def score(file: Path, task: str, protocol: str | None = None, out: Path | None = None, reporter: Reporter | None = None) -> Outcome:
    """Judge a file of JSON lines `{id, completion, gold}`; `gold` is the bare answer.

    Lines that share an id are samples of one item, numbered as they come. Without `protocol` the stop strings that all protocols know
    end what a tolerant metric reads. Fields that need a model or a prompt are null.

    Args:
        out: folder for predictions.jsonl and scores.json; None writes nothing.

    Raises:
        SokaError: exit 2 for an unknown task or protocol, or an `out` that would overwrite the input; exit 4 naming a damaged line.
    """
    judge, stops = task_named(task), stops_of(protocol, task)
    readings = protocol_named(protocol, task).readings if protocol is not None else ()
    metrics = (*judge.metrics, *readings)
    targets = (out / "predictions.jsonl", out / "scores.json") if out is not None else ()
    if any(target.resolve() == file.resolve() for target in targets):
        raise SokaError(
            "The scores would overwrite the file that is judged.",
            where=f"--out {out}",
            hint="name another folder: --out scores",
            exit_code=ExitCode.USAGE,
        )
    lines = read_completions(file)
    predictions = judge_lines(judge, lines, stops, readings, reporter or SilentReporter())
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


def read_completions(file: Path) -> list[dict[str, Any]]:
    """The lines of a file: id, completion and gold as text, and groups; SokaError (exit 4) naming the first that is not so."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise bad_file(str(file), getattr(error, "strerror", None) or str(error)) from error
    rows = [read_line(line, f"{file}:{number}") for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not rows:
        raise bad_file(str(file), "the file has no lines")
    return rows


def read_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad_file(where, f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise bad_file(where, "the line is no JSON object")
    if absent := [name for name in NEEDED if row.get(name) is None]:
        raise bad_file(where, f"it lacks {', '.join(absent)}; it has {', '.join(row) or 'nothing'}")
    if not isinstance(row["completion"], str):
        raise bad_file(where, "its completion is no text")
    if wrong := [name for name in ("id", "gold") if not isinstance(row[name], str | int | float) or isinstance(row[name], bool)]:
        raise bad_file(where, f"its {wrong[0]} is neither text nor a number")
    return {name: speakable(str(row[name])) for name in NEEDED} | {"groups": groups_of(row)}


def speakable(text: str) -> str:
    """The text with half surrogates, which JSON can escape and UTF-8 can't hold, replaced."""
    return text.encode("utf-8", "replace").decode()


def bad_file(where: str, why: str) -> SokaError:
    return SokaError(
        "The completions can't be read.",
        where=where,
        why=why,
        hint='give one JSON object a line: {"id": "0", "completion": "...#### 42", "gold": "42"}',
        exit_code=ExitCode.DATA,
    )


def judge_lines(
    task: Task, lines: Sequence[dict[str, Any]], stops: Sequence[str], readings: Sequence[str], reporter: Reporter
) -> list[Prediction]:
    """Prediction rows of completions without a prompt or a model."""
    seen: Counter[str] = Counter()
    predictions: list[Prediction] = []
    with reporter.task(f"score {task.name}", total=len(lines), unit="completions") as progress:
        for line in lines:
            example = Example(id=line["id"], prompt="", target="", gold=line["gold"])
            predictions.append(
                {
                    "id": line["id"],
                    "sample": seen[line["id"]],
                    "prompt_sha256": None,
                    "completion": line["completion"],
                    "stop_reason": None,
                    **judged(task, line["completion"], example, stops, readings),
                }
            )
            seen[line["id"]] += 1
            progress.advance(1)
    return predictions


def score_table(task: Task, scores: dict[str, Any]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple((metric, figure["value"], figure["stderr"]) for metric, figure in scores["metrics"].items())
    return Table(f"{task.name}: {scores['n']} completions of {scores['items']} items", ("metric", "value", "+-"), rows)
