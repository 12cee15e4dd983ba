"""Questions among processes, and the rows that they leave for the first."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import AppendFile, read_lines, to_line
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages import asking
from soka_cli.stages.answerer import Answers, Completion, Key, Question
from soka_cli.stages.asking import Asking
from soka_cli.stages.exam import Exam, prepare_exams
from soka_cli.stages.launch import Worker
from soka_cli.stages.shares import Part, Parts, share_of
from tests.builders import gsm8k_file, recipe_mapping, stage_context

QUESTIONS = [Question(str(number), 0, "x" * (number * 7 % 11)) for number in range(11)]


class Parrot:
    """Answers everything at once with the same words."""

    seconds = 1.0

    def limits(self, questions: Sequence[Question]) -> Iterator[str]:
        yield from ()

    def answer(self, questions: Sequence[Question], done: Sequence[Key]) -> Iterator[Answers]:
        yield [(question, Completion("#### 5", "eos", 3, 0.5)) for question in questions if question.key not in done]


def row(identity: str, sample: int = 0) -> dict[str, Any]:
    return {"id": identity, "sample": sample, "tokens": 2, "correct": {"strict": True, "flexible": True, "numeric": True}}


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_question_is_one_processs(count: int) -> None:
    shares = [share_of(QUESTIONS, Worker(rank, rank, count)) for rank in range(count)]
    assert sorted(question.id for share in shares for question in share) == sorted(question.id for question in QUESTIONS)


def test_shares_interleave_by_length() -> None:
    shares = [[len(question.prompt) for question in share_of(QUESTIONS, Worker(rank, rank, 2))] for rank in range(2)]
    assert shares == [[10, 8, 6, 4, 2, 0], [9, 7, 5, 3, 1]]


def test_a_part_is_read_as_far_as_it_is_written(tmp_path: Path) -> None:
    part = Part(tmp_path / "part.jsonl")
    assert part.new_rows() == []
    with AppendFile(part.path) as file:
        file.extend([row("0"), row("1")])
        with part.path.open("ab") as other:
            other.write(to_line(row("2"))[:10])
        assert part.new_rows() == [row("0"), row("1")]
        assert part.new_rows() == []
        with part.path.open("ab") as other:
            other.write(to_line(row("2"))[10:])
    assert part.new_rows() == [row("2")]


def test_parts_are_put_together_once_and_removed(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    for rank, names in ((1, "ab"), (12, "bc")):
        with AppendFile(layout.predictions_part("e", "base", rank)) as file:
            file.extend(row(name) for name in names)
    with layout.predictions_part("e", "base", 12).open("ab") as torn:
        torn.write(b'{"id": "d"')
    with AppendFile(layout.predictions("e", "base")) as file:
        Parts(layout, "e", "base").gather(file)
        assert [one["id"] for one in file.rows] == ["a", "b", "c"]
    assert layout.predictions_parts("e", "base") == []
    assert [one["id"] for one in read_lines(layout.predictions("e", "base"))] == ["a", "b", "c"]


def asked(tmp_path: Path) -> tuple[Any, Exam]:
    test = gsm8k_file(tmp_path, 6, "test.jsonl")
    mapping = recipe_mapping(tmp_path / "no-model", test, eval=[{"task": "gsm8k", "path": str(test)}])
    context = stage_context(tmp_path, mapping, reporter=SilentReporter())
    return context, prepare_exams(context.recipe)[0]


def test_the_first_process_counts_what_the_others_answer(tmp_path: Path) -> None:
    context, exam = asked(tmp_path)
    parts = Parts(context.layout, exam.name, "base")
    Asking(context, exam, Parrot(), [], parts, Worker(1, 1, 2)).help()
    first = Asking(context, exam, Parrot(), [], parts, Worker(0, 0, 2))
    with AppendFile(context.layout.predictions(exam.name, "base")) as file:
        first.lead(file, "e")
        assert len(file.rows) == 3
        parts.gather(file)
        assert sorted(one["id"] for one in file.rows) == [str(number) for number in range(6)]
    assert (first.asked, first.tokens) == (6, 18)


def test_the_first_process_does_the_work_of_those_that_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TAKEN_FOR_DEAD", 0.1)
    context, exam = asked(tmp_path)
    first = Asking(context, exam, Parrot(), [], Parts(context.layout, exam.name, "base"), Worker(0, 0, 2))
    with AppendFile(context.layout.predictions(exam.name, "base")) as file:
        first.lead(file, "e")
        assert sorted(one["id"] for one in file.rows) == [str(number) for number in range(6)]
    assert any("does the others' work" in warning for warning in context.reporter.warnings)
