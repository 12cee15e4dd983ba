"""Wrong and right answers of an evaluation side by side, for a person to look at."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from soka_cli.run.lines import read_lines
from soka_cli.stages.exam import Exam
from soka_cli.stages.outcome import Table
from soka_cli.stages.scores import Prediction
from soka_cli.tasks.code_task import CodeTask
from soka_cli.tasks.exercise import Exercise

PROMPT_TAIL = 400  # characters of a prompt's end
LONGEST = 1500  # characters of any other text in a table; --json has all
SIDE_BY_SIDE = 100  # columns of a terminal that hold two answers

VERDICTS = {"wrong": False, "right": True}

Answer = dict[str, Any]


def shown_answers(exam: Exam, kind: str, predictions: Path, count: int) -> dict[str, Any]:
    """The first `count` wrong and `count` right answers by the headline metric, in the data's order, whole, for --json and the tables."""
    headline = exam.metrics[0]
    prompts = {example.id: prompt for example, prompt in zip(exam.examples, exam.prompts, strict=True)}
    order = {identity: place for place, identity in enumerate(prompts)}
    rows = sorted(read_lines(predictions), key=lambda row: (order[row["id"]], row["sample"]))
    chosen = {verdict: [row for row in rows if row["correct"][headline] is right][:count] for verdict, right in VERDICTS.items()}
    return {
        "evaluation": exam.name,
        "model": kind,
        "metric": headline,
        **{verdict: [answer(exam, row, prompts[row["id"]]) for row in some] for verdict, some in chosen.items()},
    }


def answer(exam: Exam, row: Prediction, prompt: str) -> Answer:
    """What was asked, what came, what was read out of it, what is right, and what the judges say."""
    asks_programs = isinstance(exam.task, CodeTask)
    return {
        "id": row["id"],
        "sample": row["sample"],
        "prompt": prompt,
        "completion": row["completion"],
        "ended": row["stop_reason"],
        "program" if asks_programs else "extracted": row["extracted"],
        **({"tests": list(Exercise.from_text(row["gold"]).tests)} if asks_programs else {"gold": row["gold"]}),
        "why": why_program(row) if asks_programs else why_text(row),
    }


def why_text(row: Prediction) -> str:
    """Each metric's verdict, and what a judge said beside it."""
    verdicts = ", ".join(f"{metric} {'yes' if right else 'no'}" for metric, right in row["correct"].items())
    said = row.get("why") or ("no answer found" if row["extracted"] is None else "")
    return "; ".join(filter(None, (verdicts, said)))


def why_program(row: Prediction) -> str:
    """The sandbox's verdict, with the test that failed and what the program returned or raised."""
    return ": ".join(filter(None, (row.get("verdict"), row.get("why"))))


def answer_tables(shown: dict[str, Any]) -> list[Table]:
    """A table for each pair of a wrong and a right answer, or for the one of them that is left over."""
    title = f"{shown['evaluation']}, {shown['model']}: answers by {shown['metric']}"
    pairs = [dict(zip(VERDICTS, pair, strict=True)) for pair in zip_longest(*(shown[verdict] for verdict in VERDICTS))]
    tables = [pair_table(f"{title}, {number} of {len(pairs)}", pair) for number, pair in enumerate(pairs, start=1)]
    none = [f"no answer is {verdict}" for verdict in VERDICTS if not shown[verdict]]
    return tables or [Table(f"{title}: {' and '.join(none)}", ("",), ())]


def pair_table(title: str, pair: dict[str, Answer | None]) -> Table:
    there = {verdict: texts(found) for verdict, found in pair.items() if found is not None}
    names = next(iter(there.values()))
    rows = tuple((name, *(one[name] for one in there.values())) for name in names)
    return Table(title, ("", *there), rows, stack_below=SIDE_BY_SIDE)


def texts(found: Answer) -> dict[str, str]:
    """An answer's parts as they fit a table."""
    parts = {
        "item": found["id"] + (f", sample {found['sample']}" if found["sample"] else ""),
        "prompt": tail(found["prompt"]),
        "completion": head(found["completion"]),
        "ended": found["ended"] or "-",
    }
    if "tests" in found:
        whole = (found["program"] or "").strip() == found["completion"].strip()
        parts |= {"program": "the completion as it is" if whole else head(found["program"] or "-"), "tests": head(listed(found["tests"]))}
    else:
        parts |= {"extracted": "-" if found["extracted"] is None else head(found["extracted"]), "gold": head(found["gold"])}
    return parts | {"why": head(found["why"])}


def listed(tests: Sequence[str]) -> str:
    return "\n".join(test.strip("\n") for test in tests)


def tail(text: str) -> str:
    """The end of a text, from a line's beginning where one is near."""
    if len(text) <= PROMPT_TAIL:
        return visible(text)
    end = text[-PROMPT_TAIL:]
    return "... " + visible(end.partition("\n")[2] if "\n" in end[: PROMPT_TAIL // 2] else end)


def head(text: str) -> str:
    """The beginning of a text, and how much follows."""
    return visible(text) if len(text) <= LONGEST else f"{visible(text[:LONGEST])} ... ({len(text) - LONGEST:,} more characters)"


def visible(text: str) -> str:
    """The text without characters that a terminal would obey; a model may write any."""
    plain = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in plain).strip("\n")
