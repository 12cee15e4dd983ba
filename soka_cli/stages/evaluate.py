"""Ask the recipe's benchmarks and judge the answers, kept as they come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from soka_cli.models.base import tokenizer_digest
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.snapshot import snapshot
from soka_cli.recipe.resolved import to_mapping, to_yaml
from soka_cli.run.lines import AppendFile, read_lines, to_line
from soka_cli.run.lock import RunLock
from soka_cli.run.stage import Stage, open_stage
from soka_cli.run.write import atomic_file, damaged, read_json, write_json
from soka_cli.stages.agreement import NEAR_TIE, agreement
from soka_cli.stages.answers import answer_tables, shown_answers
from soka_cli.stages.asking import Answerers, Asking
from soka_cli.stages.contamination import with_contamination
from soka_cli.stages.context import StageContext
from soka_cli.stages.evaluation_tables import agreement_tables, group_tables, scores_table
from soka_cli.stages.exam import Exam, prepare_exams, text_digest
from soka_cli.stages.execution import execution, require_isolation
from soka_cli.stages.judged_model import JudgedModel, choose_models
from soka_cli.stages.launch import Worker
from soka_cli.stages.local_answerer import LocalAnswerers
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.scores import Prediction, check_predictions, summarise
from soka_cli.stages.served_answerer import ServedAnswerers
from soka_cli.stages.server_choice import ServerChoice
from soka_cli.stages.shares import Parts, key_of

Scores = dict[str, Any]

NO_INPUTS = ("name", "revision", "max_memory")
"""Of the model section: what its digest says better, and where the weights lie."""

SITTING = timedelta(days=7)  # for the first process to come to an exam; the ones before may take that long


def evaluate(
    context: StageContext,
    kinds: Sequence[str] | None = None,
    folder: Path | None = None,
    show: int = 0,
    server: ServerChoice | None = None,
) -> Outcome:
    """Every eval entry of the recipe, asked of each chosen model.

    Among several processes the first one owns the run directory; the others leave their rows for it and return `partial`.

    Args:
        kinds: of base, adapter, merged; None takes those that exist.
        folder: a model or adapter folder from anywhere, judged as kind other.
        show: wrong and right answers shown of each, in items.
        server: who answers in the models' place; without `kinds` its model is of kind other.

    Raises:
        SokaError: exit 4 for the data, 5 for a stale or damaged run - both before a model is loaded;
            3 for a base model or a server that can't be had, or programs that nothing here isolates, 6 where memory or disk runs out.
    """
    exams = prepare_exams(context.recipe, offline=context.offline)
    require_isolation(exams, context)
    worker = Worker.here()
    if worker.rank:
        for sitting in planned(context, exams, kinds, folder, server):
            sitting.help(worker)
        return Outcome("eval", "partial", context.layout.root)
    with RunLock(context.layout.lock, context.command):
        sittings = planned(context, exams, kinds, folder, server)
        for sitting in sittings:
            sitting.hold(worker)
        return with_contamination(context, exams, outcome(context, exams, sittings, show))


def planned(
    context: StageContext, exams: Sequence[Exam], kinds: Sequence[str] | None, folder: Path | None, server: ServerChoice | None
) -> list["Sitting"]:
    """Which model sits which exam, in this order in every process."""
    served = ServedAnswerers(context, server) if server is not None else None
    models = choose_models(context, kinds, folder, served.model.name if served is not None else None)
    answerers = served or LocalAnswerers(context)
    return [Sitting(context, exam, model, answerers) for model in models for exam in exams]


@dataclass
class Sitting:
    """One exam of one model.

    Attributes:
        scores: the content of scores.json, once held.
        fresh: whether anything was asked, or all was done before.
    """

    context: StageContext
    exam: Exam
    model: JudgedModel
    answerers: Answerers
    scores: Scores = field(default_factory=dict)
    fresh: bool = False

    @property
    def stage_name(self) -> str:
        return f"eval/{self.exam.name}-{self.model.kind}"

    @property
    def predictions(self) -> Path:
        return self.context.layout.predictions(self.exam.name, self.model.kind)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the answers depend on, by content, so that a run directory can move to where the base lies elsewhere."""
        return {
            "entry": self.exam.inputs,
            "template_sha256": self.exam.template_sha256,
            "protocol_sha256": self.exam.protocol.sha256,
            "data_sha256": self.exam.data_sha256,
            "shots_sha256": self.exam.shots_sha256,
            "adapter_sha256": self.model.adapter_sha256,
            "model_sha256": self.model.model_sha256,
            **(self._loaded if self.model.served is None else self._served),
        }

    @property
    def _loaded(self) -> dict[str, Any]:
        """How the base is loaded, and which it is."""
        section = self.context.recipe.model
        model = {name: value for name, value in to_mapping(self.context.recipe)["model"].items() if name not in NO_INPUTS}
        on_base = self.model.model_sha256 is None
        folder = snapshot(section.name, revision=section.revision, offline=self.context.offline) if on_base else None
        return {"model": model, "base": Checkpoint(folder).digest if folder is not None else None}

    @property
    def _served(self) -> dict[str, Any]:
        """The model by the name that the server gives it, and the tokenizer whose ids it is sent; no weights are needed here."""
        return {"served": self.model.served, "tokenizer_sha256": tokenizer_digest(self.context.recipe.model, offline=self.context.offline)}

    def hold(self, worker: Worker) -> None:
        """Ask what has not been answered yet and write scores.json; reads it where all is done. In the first process."""
        context, layout = self.context, self.context.layout
        path = layout.scores(self.exam.name, self.model.kind)
        with (
            worker.leads(self.stage_name) as go,
            open_stage(
                layout,
                self.stage_name,
                self.inputs,
                recipe_yaml=to_yaml(context.recipe),
                source_text=context.loaded.source_text,
                reporter=context.reporter,
                command=context.command,
                force=context.force,
                folders=[layout.evaluation(self.exam.name, self.model.kind)],
                extends=asks_for_more,
            ) as stage,
        ):
            if stage.done:
                self.scores = read_json(path)
                return
            self.fresh = True
            self._ask(stage, worker, go)
            write_json(path, self.scores)
            stage.finish([self.predictions, path], {"device": self.answerers.where, "processes": worker.count})

    def help(self, worker: Worker) -> None:
        """Another process's share, once the first one says that there is something to do."""
        if worker.may_begin(self.stage_name, SITTING):
            self._asking(read_lines(self.predictions), worker).help()

    def _ask(self, stage: Stage, worker: Worker, go: Callable[[], None]) -> None:
        exam, say = self.exam, self.context.reporter.say
        parts = Parts(self.context.layout, exam.name, self.model.kind)
        with AppendFile(self.predictions) as file:
            if file.cut:
                say(file.cut)
            parts.gather(file)
            check_predictions(file.rows, self.predictions, exam.judged)
            refuse_other_prompts(file.rows, exam, self.predictions)
            wanted = len(exam.questions)
            if file.rows:
                say(f"{stage.name}: {len(file.rows)} of {wanted} answers are there already; going on.")
            asking = None
            if len(file.rows) < wanted:
                go()
                asking = self._asking(file.rows, worker)
                asking.lead(file, f"{exam.name}, {self.model.kind}")
                parts.gather(file)
            rows = file.rows
        self.scores = self._summary(put_in_order(rows, exam, self.predictions), asking)

    def _asking(self, rows: Sequence[Prediction], worker: Worker) -> Asking:
        parts = Parts(self.context.layout, self.exam.name, self.model.kind)
        return Asking(self.context, self.exam, self.answerers.answerer(self.exam, self.model), rows, parts, worker)

    def _summary(self, rows: Sequence[Prediction], asking: "Asking | None") -> Scores:
        """scores.json. `seconds` and `tokens_per_s` are of this session's generation, which `asked` counts."""
        exam, recipe = self.exam, self.context.recipe
        seconds, tokens = (asking.seconds, asking.tokens) if asking is not None else (0.0, 0)
        reasons = [row["stop_reason"] for row in rows]
        return {
            "task": exam.task.name,
            "protocol": exam.protocol.name,
            "model": self.model.kind,
            "name": exam.name,
            "model_name": self.model.served or str(self.model.folder) if self.model.kind == "other" else recipe.model.name,
            **summarise(rows, exam.metrics, {example.id: example.groups for example in exam.examples}),
            "template_sha256": exam.template_sha256,
            "protocol_sha256": exam.protocol.sha256,
            "data_sha256": exam.data_sha256,
            "shots_sha256": exam.shots_sha256,
            "adapter_sha256": self.model.adapter_sha256,
            "model_sha256": self.model.model_sha256,
            "decoding": {
                **strategy(exam),
                "max_new_tokens": exam.max_new_tokens,
                "stops": list(exam.protocol.stops),
                "template": exam.protocol.template_name,
                "shots": exam.protocol.shots.count if exam.protocol.shots else 0,
                "postprocessing": exam.protocol.postprocessing,
                "limit": exam.entry.limit,
                **self.answerers.settings,
                "quantization": self._quantization,
            },
            **execution(exam.task, rows, self.context.unsafe_execution),
            "near_ties": near_ties(rows),
            "stop_reasons": {reason: reasons.count(reason) for reason in ("eos", "stop", "length", "context")},
            "reference": exam.protocol.reference,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(tokens / seconds, 1) if seconds and tokens else None,
            "asked": asking.asked if asking is not None else 0,
        }

    @property
    def _quantization(self) -> str | None:
        """How the base under the answers was packed by the recipe; a whole model is taken as it lies, and a server does not tell."""
        if self.model.served is not None:
            return None
        return self.context.recipe.model.quantization if self.model.model_sha256 is None else "none"


def asks_for_more(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether only samples or pass_at changed, and no answer falls away: those that are there stay, and more may follow."""
    if "entry" not in old:
        return False

    def settled(inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | {"entry": {key: value for key, value in inputs["entry"].items() if key not in ("samples", "pass_at")}}

    before, now = (inputs["entry"].get("samples", 1) for inputs in (old, new))
    return settled(old) == settled(new) and before <= now


def refuse_other_prompts(rows: Sequence[Prediction], exam: Exam, path: Path) -> None:
    """Answers belong to the questions of this exam, or the file is not this evaluation's (exit 5)."""
    digests = {question.key: text_digest(question.prompt) for question in exam.questions}
    for number, row in enumerate(rows, start=1):
        if digests.get(key_of(row)) != row["prompt_sha256"]:
            raise damaged(path, f"line {number} answers no item of this evaluation", "repeat the evaluation with --force")


def put_in_order(rows: Sequence[Prediction], exam: Exam, path: Path) -> list[Prediction]:
    """The finished file's rows in the order of the data, whatever the order in which they came."""
    places = {question.key: place for place, question in enumerate(exam.questions)}
    ordered = sorted(rows, key=lambda row: places[key_of(row)])
    if ordered != list(rows):
        with atomic_file(path) as staged:
            staged.write_bytes(b"".join(map(to_line, ordered)))
    return ordered


def strategy(exam: Exam) -> dict[str, Any]:
    """The beginning of `decoding`: how tokens were chosen, and how often."""
    entry = exam.entry
    if not entry.temperature:
        return {"strategy": "greedy"}
    return {"strategy": "sampled", "temperature": entry.temperature, "top_p": entry.top_p, "samples": entry.samples, "seed": exam.seed}


def near_ties(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Answers in which a token led the next best by so little that rounding may choose another elsewhere; None where nobody knows."""
    gaps = [row["smallest_gap"] for row in rows if row.get("smallest_gap") is not None]
    return {"below": NEAR_TIE, "count": sum(gap < NEAR_TIE for gap in gaps) if gaps else None}


def outcome(context: StageContext, exams: Sequence[Exam], sittings: Sequence[Sitting], show: int) -> Outcome:
    """Tables a protocol at a time, since figures of two protocols are not comparable."""
    layout = context.layout
    tables, notes, agreements, answers = [], [], {}, []
    for exam in exams:
        held = [sitting for sitting in sittings if sitting.exam is exam]
        tables.append(scores_table(exam, [sitting.scores for sitting in held]))
        tables += [table for sitting in held for table in group_tables(f"{exam.name}, {sitting.model.kind}", sitting.scores)]
        notes.append(f"{exam.name}: protocol {exam.protocol.name}. {exam.protocol.reference}")
        if (found := agreement(layout, exam.name)) is not None:
            agreements[exam.name] = found.to_mapping()
            tables += agreement_tables(exam.name, found)
        answers += [shown_answers(exam, sitting.model.kind, sitting.predictions, show) for sitting in held if show]
    fresh = any(sitting.fresh for sitting in sittings)
    merged = layout.merged_model.is_dir() or not any(sitting.model.kind == "adapter" for sitting in sittings)
    return Outcome(
        stage="eval",
        status="done" if fresh else "already done",
        run=layout.root,
        figures={"scores": [sitting.scores for sitting in sittings], "agreement": agreements, **({"answers": answers} if show else {})},
        tables=(*tables, *(table for shown in answers for table in answer_tables(shown))),
        notes=tuple(notes),
        next_commands=(f"soka {'report' if merged else 'merge'} --run {layout.root}",),
    )
