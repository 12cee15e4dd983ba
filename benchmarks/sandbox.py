"""Verdicts a second of the sandbox, by layer, and all reference programs of the data sets judged once.

python -m benchmarks.sandbox [--programs 200] [--workers 2] [--references ../shared/data]
"""

import argparse
import os
import time
from collections import Counter
from pathlib import Path

from soka_cli.data.load import load_rows
from soka_cli.run.environment import processors
from soka_cli.sandbox import Program, Verdict, find_isolation
from soka_cli.sandbox.isolation import NAMES, UNSAFE
from soka_cli.sandbox.layer import Layer
from soka_cli.sandbox.pool import judge_with
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.exercise import Exercise
from soka_cli.tasks.humaneval import HumanEval
from soka_cli.tasks.mbpp import Mbpp

REFERENCES: tuple[tuple[CodeTask, str, str], ...] = (
    (Mbpp(), "mbpp/mbpp.jsonl", "code"),
    (Mbpp(), "mbpp/sanitized-mbpp.json", "code"),
    (HumanEval(), "humaneval/HumanEval.jsonl", "canonical_solution"),
)


def timed(layer: Layer, programs: list[Program], workers: int) -> tuple[float, list[Verdict]]:
    """Seconds of all verdicts, the first sandbox's start and the last one's end included."""
    started = time.perf_counter()
    verdicts = judge_with(layer, programs, workers=workers)
    return time.perf_counter() - started, verdicts


def rates(count: int, workers: int) -> None:
    programs = [Program(f"def f(x):\n    return x + {number}", (f"assert f(1) == {number + 1}",)) for number in range(count)]
    print(
        f"| layer | verdicts/s | (n = {count}, {workers} workers, {processors()} cores, load {os.getloadavg()[0]:.1f})\n| --- | --- | --- |"
    )
    for name in (*NAMES, "none"):
        layer = UNSAFE if name == "none" else find_isolation(name).layer
        if layer is None:
            print(f"| {name} | - | {dict(find_isolation(name).refused)[name]} |")
            continue
        seconds, verdicts = timed(layer, programs, workers)
        assert all(verdict.passed for verdict in verdicts)
        print(f"| {name} | {count / seconds:.1f} | |")


def references(folder: Path, workers: int) -> None:
    layer = find_isolation().layer
    assert layer is not None, "nothing isolates programs here"
    print("| file | programs | verdicts | modes | seconds | slowest s |\n| --- | --- | --- | --- | --- | --- |")
    for task, file, answer in REFERENCES:
        programs = []
        for index, row in enumerate(load_rows(str(folder / file), split="all", task=task.name)):
            exercise = Exercise.from_text(task.example(row, index).gold)
            programs.append(Program(task.program(row[answer], exercise, "none"), exercise.tests, exercise.setup))
        seconds, verdicts = timed(layer, programs, workers)
        kinds, modes = (dict(Counter(getattr(verdict, name) for verdict in verdicts)) for name in ("verdict", "mode"))
        print(f"| {file} | {len(programs)} | {kinds} | {modes} | {seconds:.1f} | {max(verdict.seconds for verdict in verdicts):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=processors())
    parser.add_argument("--references", type=Path)
    chosen = parser.parse_args()
    rates(chosen.programs, chosen.workers)
    if chosen.references is not None:
        references(chosen.references, chosen.workers)


if __name__ == "__main__":
    main()
