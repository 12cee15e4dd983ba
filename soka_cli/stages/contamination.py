"""contamination.json: which evaluation items the run's training rows hold, and what the scores are without them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from soka_cli.data.load import stream_source
from soka_cli.data.overlap import DEFINITION, NGRAM, ItemOverlap, OverlapIndex, RowName, RowTexts
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.resolved import to_yaml
from soka_cli.recipe.schema import SourceSection
from soka_cli.run.digest import file_digest, json_digest
from soka_cli.run.lines import read_lines
from soka_cli.run.manifest import Manifest
from soka_cli.run.stage import Stage, open_stage
from soka_cli.run.write import read_json, write_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.decontamination import LEAVES_OUT, item_of, texts_of
from soka_cli.stages.evaluation_tables import with_error
from soka_cli.stages.exam import Exam
from soka_cli.stages.outcome import Cell, Outcome, Table
from soka_cli.stages.rows import data_inputs, validation_source
from soka_cli.stages.scores import summarise

STAGE = "contamination"
KINDS = ("base", "adapter", "merged")  # what the run's own training rows say something of
NEAR = 0.5  # share of a problem's runs from which on it is counted as a near copy

Found = dict[str, Any]


def with_contamination(context: StageContext, exams: Sequence[Exam], outcome: Outcome) -> Outcome:
    """The outcome of an evaluation with the overlap of its items and the training rows, which is also written.

    Training rows that can't be read here keep no evaluation from being done: that is said, and nothing is written.
    """
    try:
        found = contamination(context, exams)
    except SokaError as error:
        if error.exit_code not in (ExitCode.DATA, ExitCode.ENVIRONMENT):
            raise
        why = ": ".join(filter(None, (error.what.rstrip("."), error.where, error.why)))
        context.reporter.warn(f"No overlap of items and training rows was looked for: {why}")
        return replace(outcome, figures=outcome.figures | {STAGE: None})
    return replace(
        outcome,
        figures=outcome.figures | {STAGE: found},
        tables=(*outcome.tables, *contamination_tables(found)),
        notes=(*outcome.notes, *contamination_notes(found)),
    )


def contamination(context: StageContext, exams: Sequence[Exam]) -> Found:
    """Compare the items of all exams with the training rows, and put the scores that there are beside it.

    One pass over the rows; where neither rows nor items changed, the earlier findings stay and the scores alone are brought up to date.

    Raises:
        SokaError: exit 3 or 4 for training rows that can't be read, exit 5 for a damaged file.
    """
    layout = context.layout
    refuse_other_rows(context)
    compared = {
        "definition": DEFINITION,
        "data": data_inputs(context.recipe),
        "dropped": json_digest(dropped) if (dropped := dropped_rows(context)) is not None else None,
        "evaluations": {exam.name: [exam.task.name, exam.data_sha256, len(exam.examples)] for exam in exams},
    }
    scores = {f"{name}-{kind}": file_digest(layout.predictions(name, kind)) for name, kind in judged(context, exams)}
    with open_stage(
        layout,
        STAGE,
        {"compared": compared, "scores": scores},
        recipe_yaml=to_yaml(context.recipe),
        source_text=context.loaded.source_text,
        reporter=context.reporter,
        command=context.command,
        force=context.force,
        folders=[layout.contamination],
        extends=lambda old, new: True,  # of whatever was compared before, the present evaluations are what is asked about
    ) as stage:
        if stage.done:
            return dict(read_json(layout.contamination))
        found = earlier(context, stage) or compare(context, exams, dropped)
        for evaluation, exam in zip(found["evaluations"], exams, strict=True):
            evaluation["scores"] = {kind: scores_apart(context, exam, kind, evaluation) for name, kind in judged(context, [exam])}
        write_json(layout.contamination, found)
        stage.finish([layout.contamination])
    return found


def refuse_other_rows(context: StageContext) -> None:
    """The rows that were trained on are those that the recipe names (exit 4)."""
    record = Manifest.read(context.layout.manifest).stages.get("train")
    if record is None or record.status != "done":
        return
    trained, named = record.inputs.get("data", {}).get("train"), data_inputs(context.recipe)["train"]
    if trained is not None and trained != named:
        raise SokaError(
            "The run was trained on other rows than the recipe names now.",
            where="data.train",
            hint=f"soka train --run {context.layout.root} --force trains on these",
            exit_code=ExitCode.DATA,
        )


def dropped_rows(context: StageContext) -> list[list[int]] | None:
    """Of each of `compared_sources` the places of the rows that the run's training left out; None where it was not asked to, or not run."""
    path = context.layout.environment("train")
    record = Manifest.read(context.layout.manifest).stages.get("train")
    if record is None or record.status != "done" or not path.is_file():
        return None
    ledger = read_json(path).get("data", {}).get("decontaminated")
    if ledger is None:
        return None
    return [source["rows"] for source in (*ledger["sources"], *([ledger["validation"]] if "validation" in ledger else []))]


def judged(context: StageContext, exams: Sequence[Exam]) -> Iterator[tuple[str, str]]:
    """Name and kind of the evaluations of these exams that are done, the present ones and earlier ones alike."""
    stages = Manifest.read(context.layout.manifest).stages
    for exam in exams:
        for kind in KINDS:
            record = stages.get(f"eval/{exam.name}-{kind}")
            if record is not None and record.status == "done":
                yield exam.name, kind


def earlier(context: StageContext, stage: Stage) -> Found | None:
    """What the same comparison found before, if it was made."""
    record = stage.record
    if record is None or record.status != "done" or record.inputs["compared"] != stage.inputs["compared"]:
        return None
    return dict(read_json(context.layout.contamination))


def compare(context: StageContext, exams: Sequence[Exam], dropped: list[list[int]] | None) -> Found:
    """One pass over the training rows, and over the held-out ones that have a file of their own."""
    index = OverlapIndex([item_of(example) for exam in exams for example in exam.examples])
    scanned: Counter[int] = Counter()
    with context.reporter.task("training rows in the evaluations", unit="rows") as progress:
        overlap = index.overlap(compared_rows(context, dropped, scanned), progress.advance)
    sources, learnt = compared_sources(context), len(context.recipe.data.sources)

    def of(places: range) -> Found:
        rows = {mine: [number for place, number in overlap.rows if place == mine] for mine in places}
        gone = dropped[places.start : places.stop] if dropped is not None else None
        return {
            "rows": sum(scanned[mine] for mine in places),
            "overlapping": sum(map(len, rows.values())),
            "dropped": sum(map(len, gone)) if gone is not None else None,
            "sources": [{"path": sources[mine].path, "rows": rows[mine]} for mine in places],
        }

    evaluations, start = [], 0
    for exam in exams:
        overlaps = {place - start: found for place, found in overlap.items.items() if start <= place < start + len(exam.examples)}
        evaluations.append(evaluation_found(exam, overlaps, learnt))
        start += len(exam.examples)
    return {
        "schema_version": 1,
        "definition": DEFINITION,
        "words": NGRAM,
        "decontaminate": context.recipe.data.decontaminate,
        "training": of(range(learnt)),
        "validation": of(range(learnt, len(sources))) if len(sources) > learnt else None,
        "evaluations": evaluations,
    }


def compared_sources(context: StageContext) -> list[SourceSection]:
    """The training sources and, behind them, the held-out rows' own file or Hub set where there is one."""
    data = context.recipe.data
    held_out = validation_source(data)
    return [*data.sources, *([held_out] if held_out is not None else [])]


def compared_rows(context: StageContext, dropped: list[list[int]] | None, scanned: Counter[int]) -> Iterator[RowTexts]:
    """The rows of all these sources that the recipe takes, as they come, without those that training left out; counted in `scanned`.

    Rows held out for validation are among them: they choose the model where they don't teach it.
    """
    for place, source in enumerate(compared_sources(context)):
        gone = {number for numbers in (dropped or [])[place : place + 1] for number in numbers}
        rows = ((number, row) for number, row in stream_source(source, offline=context.offline) if number not in gone)
        for texts in texts_of(place, source, rows):
            scanned[place] += 1
            yield texts


def evaluation_found(exam: Exam, overlaps: dict[int, ItemOverlap], learnt: int) -> Found:
    """The items of one evaluation that overlap: which, how many, and how. `learnt` is the number of training sources."""
    near = [exam.examples[place].id for place, found in overlaps.items() if is_near(found)]
    return {
        "name": exam.name,
        "items": len(exam.examples),
        "overlapping": len(overlaps),
        "share": len(overlaps) / len(exam.examples),
        "whole": sum(found.exact for found in overlaps.values()),
        "near": len(near),
        "in_problem": sum(found.exact or bool(found.problem) for found in overlaps.values()),
        "in_solution": sum(bool(found.solution) for found in overlaps.values()),
        "ids": [exam.examples[place].id for place in overlaps],
        "near_ids": near,
        "overlaps": [
            {"id": exam.examples[place].id, **asdict(found), "rows": named(found.rows, learnt)} for place, found in overlaps.items()
        ],
    }


def named(rows: Sequence[RowName], learnt: int) -> list[dict[str, int | str]]:
    """Rows by their source's place in the recipe, or the word validation, and their own in the source; both from 0."""
    return [{"source": source if source < learnt else "validation", "row": number} for source, number in rows]


def is_near(found: ItemOverlap) -> bool:
    """Whether a row has the problem whole, or half of it or more: a copy, and not a phrase that both use."""
    return found.exact or (found.problem or 0.0) >= NEAR


def scores_apart(context: StageContext, exam: Exam, kind: str, evaluation: Found) -> Found:
    """Each metric over all items, without those that overlap, without near copies alone, and over those that overlap."""
    rows = read_lines(context.layout.predictions(exam.name, kind))
    ids, near = set(evaluation["ids"]), set(evaluation["near_ids"])
    sets = {
        "all": rows,
        "without": [row for row in rows if row["id"] not in ids],
        "without_near": [row for row in rows if row["id"] not in near],
        "overlapping": [row for row in rows if row["id"] in ids],
    }
    return {
        name: {key: figure for key, figure in summarise(some, exam.metrics).items() if key != "groups"} if some else None
        for name, some in sets.items()
    }


# ---- for a person


def contamination_tables(found: Found) -> Iterator[Table]:
    """How many items overlap, and the scores with and without them where some do."""
    rows: list[tuple[Cell, ...]] = [
        (
            one["name"],
            one["items"],
            f"{one['overlapping']} ({100 * one['share']:.1f}%)",
            one["in_problem"],
            one["in_solution"],
            one["near"],
            one["whole"],
        )
        for one in found["evaluations"]
    ]
    columns = ("evaluation", "items", "overlap", "in the problem", "in the solution", "near copies", "whole problems")
    title = f"Items that stand in the {found['training']['rows']:,} training rows, whole or by {found['words']} words in a row"
    yield Table(title, columns, tuple(rows))
    apart = [row for one in found["evaluations"] if one["overlapping"] for row in score_rows(one)]
    if apart:
        columns = ("evaluation", "model", "metric", "all items", "without overlap", "without near copies", "overlap alone")
        yield Table("Scores with and without them", columns, tuple(apart))


def score_rows(evaluation: Found) -> Iterator[tuple[Cell, ...]]:
    for kind, sets in evaluation["scores"].items():
        for metric in sets["all"]["metrics"]:
            figures = (with_error(**one["metrics"][metric]) if one is not None else None for one in sets.values())
            yield (evaluation["name"], kind, metric, *figures)


def contamination_notes(found: Found) -> Iterator[str]:
    for name in ("training", "validation"):
        rows = found.get(name)
        if rows is None:
            continue
        if rows["dropped"] is not None:
            yield f"{LEAVES_OUT}: {rows['dropped']:,} {name} rows that overlapped with the items were left out of the training."
        elif rows["overlapping"]:
            would = "leaves" if found["decontaminate"] == "drop" else "would leave"
            some = f"{rows['overlapping']:,} of {rows['rows']:,} {name} rows"
            yield f"{some} hold some of the items asked; {LEAVES_OUT} {would} them out of a training."
