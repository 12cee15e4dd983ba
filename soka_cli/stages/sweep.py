"""Stage sweep: many runs of one recipe, and what they say of methods and settings."""

import math
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import LoadedRecipe
from soka_cli.recipe.places import shown
from soka_cli.run.layout import RunLayout
from soka_cli.run.lock import RunLock
from soka_cli.run.reporter import ProgressTask
from soka_cli.run.sweep_layout import SweepLayout
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.page import write_page
from soka_cli.stages.sweep_cost import Cost, cost, cost_table, measured_speed, seeds_note, sums, totals, totals_note
from soka_cli.stages.sweep_page import failures_table, marks, next_commands, sweep_page, tables
from soka_cli.stages.sweep_points import STEPS, Point, Sweep
from soka_cli.stages.sweep_record import Record, Result, read_record
from soka_cli.stages.sweep_runner import Ended, Job, devices_for, run_jobs
from soka_cli.stages.sweep_state import failed_before, has_passed, is_done

STAGE = "sweep"
Words = tuple[str, ...]


def sweep(
    context: StageContext,
    *,
    overrides: Sequence[str] = (),
    jobs: int = 1,
    num_processes: int = 1,
    dry_run: bool = False,
    print_commands: bool = False,
) -> Outcome:
    """Run every point of the recipe's sweep section in a directory of its own under the context's; go on where it stopped.

    Writes sweep.json whenever a run begins or ends, and report/ (sweep.html, sweep.md, plots) at the end.

    Args:
        overrides: the user's own, for every run.
        jobs: runs at a time.
        num_processes: processes of each run that share its work.
        dry_run: only say what would run, and what it costs.
        print_commands: only print one line of shell a run, for another scheduler.

    Raises:
        SokaError: exit 2, a sweep that makes no sense; exit 5, the directory is locked or something else.
    """
    plan = Sweep.of(context.loaded, overrides)
    work = _Sweep(context, plan, jobs, num_processes)
    work.refuse_misfits()
    points = plan.points()
    if print_commands:
        return work.printed(points)
    if dry_run:
        return work.cost(points)
    refuse_a_run(work.layout)
    with RunLock(work.layout.lock, context.command):
        work.go_through(points)
        return work.outcome()


def refuse_a_run(layout: SweepLayout) -> None:
    if RunLayout(layout.root).manifest.exists():
        raise SokaError(
            f"{layout.root} is the directory of one run, and no sweep's",
            where=str(layout.root),
            hint="name another directory for the sweep: --run DIR",
            exit_code=ExitCode.RUN,
        )


@dataclass
class _Sweep:
    """One call: the points, their commands, and the record that is kept."""

    context: StageContext
    plan: Sweep
    jobs: int
    num_processes: int
    fresh: int = 0
    earlier: dict[str, int | None] = field(default_factory=dict)  # exit codes that the last call noted
    _record: Record | None = field(default=None, repr=False)

    @property
    def layout(self) -> SweepLayout:
        return SweepLayout(self.context.layout.root)

    @property
    def record(self) -> Record:
        assert self._record is not None
        return self._record

    @property
    def metric(self) -> str:
        if self.plan.section.metric is not None:
            return self.plan.section.metric
        return "loss" if self.context.recipe.data.validation is None else "eval_loss"

    @property
    def lengths(self) -> list[int]:
        """Steps after which halving looks; empty where there is no halving."""
        return self.plan.section.halving.steps if self.plan.section.halving is not None else []

    @property
    def apart(self) -> bool:
        """Whether a longer run is no continuation of a shorter one: its schedule knows the length, and is another from the first step."""
        return self.context.recipe.train.schedule != "constant"

    def refuse_misfits(self) -> None:
        """What goes wrong after hours, said before (exit 2)."""
        wrong = []
        if self.metric == "eval_loss" and self.context.recipe.data.validation is None:
            wrong.append("metric eval_loss needs held-out rows: data.validation={fraction: 0.02}")
        entries = {entry.folder for entry in self.context.recipe.eval}
        if "/" in self.metric and self.metric.partition("/")[0] not in entries:
            wrong.append(f"metric {self.metric} names no eval entry; there are {', '.join(sorted(entries)) or 'none'}")
        if self.plan.section.stages == "eval" and not entries:
            wrong.append("stages: eval needs an eval entry in the recipe")
        if self.lengths and any(STEPS in self.plan.axes(method) for method in self.plan.methods):
            wrong.append(f"halving sets {STEPS} itself; take it out of the grid")
        if wrong:
            raise SokaError(
                "the sweep does not fit its recipe",
                where=f"{self.plan.source}, section sweep",
                why="\n".join(wrong),
                hint="soka recipes show NAME shows the whole recipe",
                exit_code=ExitCode.USAGE,
            )

    # ---- commands

    def commands(self, point: Point, *, final: bool = True) -> tuple[Words, ...]:
        """The words after `soka`, one command after the other."""
        given = ("--recipe", shown(self.plan.source, Path.cwd()), "--run", str(self.layout.root / point.name))
        flags = (*(("--offline",) if self.context.offline else ()), *(("--force",) if self.context.force else ()))
        end = (*given, *flags, *point.overrides)
        shared = ("--num-processes", str(self.num_processes)) if self.num_processes > 1 else ()
        stages = self.plan.section.stages if final else "train"
        train, evaluate = ("train", *end, *shared), ("eval", *end, "--model", "adapter", *shared)
        if stages == "run":
            return (*((train,) if shared else ()), ("run", *end))
        return (train, evaluate) if stages == "eval" else (train,)

    def printed(self, points: Sequence[Point]) -> Outcome:
        if self.lengths:
            raise SokaError(
                "halving decides from results which runs go on, so its commands cannot be printed before",
                where="sweep.halving",
                hint="sweep.halving=null prints the whole grid; without --print-commands soka sweep runs it here",
                exit_code=ExitCode.USAGE,
            )
        device = () if self.context.device == "auto" else ("--device", self.context.device)
        lines = [" && ".join(shlex.join(["soka", *words, *device]) for words in self.commands(point)) for point in points]
        if seeds := self.further_seeds:
            given = ["--recipe", shown(self.plan.source, Path.cwd()), "--run", str(self.layout.root)]
            again = shlex.join(["soka", "sweep", *given, *self.context.loaded.overrides])
            self.context.reporter.warn(
                f"sweep.best_seeds is not among the commands: which setting is best shows when they have run. {again} then starts "
                f"{len(seeds)} more seeds of each method's best, and reads the others as they are"
            )
        return Outcome(STAGE, "done", self.layout.root, {"commands": lines}, text="\n".join(lines))

    def cost(self, points: Sequence[Point]) -> Outcome:
        """What --dry-run says."""
        costs = [cost(self.context, point, stages=stages) for point, stages in self.pieces(points)]
        done = [one.point.name for one in costs if self.is_done(one.point, None)]
        found = totals(costs, done, measured_speed(self.speeds(costs)))
        figures: dict[str, Any] = {
            "runs": [{"name": one.point.name, "parameters": one.parameters, "steps": one.steps, "tokens": one.tokens} for one in costs],
            "totals": found,
            "best_seeds": None,
        }
        notes = [totals_note(found, self.jobs)]
        if seeds := self.further_seeds:
            dearest = self.dearest(costs, points)
            figures["best_seeds"] = {"runs": len(dearest) * len(seeds), **sums([one for one in dearest for _ in seeds])}
            notes.append(seeds_note(figures["best_seeds"], seeds))
        return Outcome(STAGE, "done", self.layout.root, figures, (cost_table(costs),), notes=tuple(notes))

    @property
    def further_seeds(self) -> list[int]:
        """Those of each method's best setting that the grid has not tried."""
        section = self.plan.section
        return [seed for seed in section.best_seeds if seed not in (section.seeds or [self.context.recipe.seed])]

    def dearest(self, costs: Sequence[Cost], points: Sequence[Point]) -> list[Cost]:
        """Of each method the setting that takes the most operations, at its full length."""
        whole = costs
        if self.lengths:
            last = self.lengths[-1]
            whole = [cost(self.context, self.of_length(point, last), stages=self.plan.section.stages) for point in points]
        by_method = ([one for one in whole if one.point.method == method] for method in self.plan.methods)
        return [max(some, key=lambda one: (one.operations or 0.0, one.steps or 0)) for some in by_method]

    def pieces(self, points: Sequence[Point]) -> list[tuple[Point, str]]:
        """What would be trained in all and what is done of it: under halving the longest of each method at every length, by number."""
        stages: str = self.plan.section.stages
        if not self.lengths:
            return [(point, stages) for point in points]
        found: list[tuple[Point, str]] = []
        left = list(points)
        for place, steps in enumerate(self.lengths):
            before = self.lengths[place - 1] if place and not self.apart else 0
            done = stages if place == len(self.lengths) - 1 else "train"
            found += [(replace(self.of_length(point, steps - before), name=f"{point.name}-{steps}steps"), done) for point in left]
            left = [point for method in self.plan.methods for point in self.first_part([one for one in left if one.method == method])]
        return found

    def first_part(self, points: Sequence[Point]) -> list[Point]:
        """As many settings as halving keeps, with all their seeds."""
        settings = list(dict.fromkeys(point.setting for point in points))
        kept = settings[: self.kept(len(settings))]
        return [point for point in points if point.setting in kept]

    def kept(self, count: int) -> int:
        assert self.plan.section.halving is not None
        return max(1, math.ceil(self.plan.section.halving.keep * count))

    def speeds(self, costs: Sequence[Cost]) -> list[float]:
        """Tokens a second of the sweep's finished runs."""
        found = []
        for one in costs:
            result = Result(one.point, str(self.layout.root / one.point.name))
            if self.is_done(one.point, None):
                result.read(Path(result.run), "loss")
                if result.tokens and result.seconds:
                    found.append(result.tokens / result.seconds)
        return found

    # ---- runs

    def go_through(self, points: Sequence[Point]) -> None:
        """The grid, by lengths under halving, then the further seeds of the best."""
        section = self.plan.section
        axes = {method: self.plan.axes(method) for method in self.plan.methods}
        seeds = section.seeds or [self.context.recipe.seed]
        before = read_record(self.layout.root)
        self.earlier = {one["name"]: one["exit_code"] for one in before["runs"]} if before else {}
        results = [Result(point, str(self.layout.root / point.name)) for point in points]
        self._record = Record(self.layout, self.context.loaded.name, self.context.command, self.metric, axes, seeds, results)
        if not self.lengths:
            self.do(results, None, final=True)
        for place, steps in enumerate(self.lengths):
            final = place == len(self.lengths) - 1
            alive = [one for one in self.record.results if one.status == "waiting"]
            for one in alive:
                one.point = self.of_length(one.point, steps)
                one.run = str(self.layout.root / one.point.name)
            self.do(alive, steps, final=final)
            if not final:
                self.halve(alive)
        self.try_more_seeds(self.further_seeds)
        self.record.write()

    def of_length(self, point: Point, steps: int) -> Point:
        base = self.plan.point(point.method, point.values, point.seed)
        return base.of_length(steps, self.plan.source, self.plan.folder, apart=self.apart)

    def halve(self, alive: Sequence[Result]) -> None:
        """Of each method's settings the better ones wait for the next length, the others have stopped."""
        trained = [one for one in alive if one.status == "done"]
        settings = [one for one in self.record.settings() if all(result in trained for result in one.results)]
        for method in self.plan.methods:
            ranked = self.record.ranked(one for one in settings if one.method == method)
            for place, setting in enumerate(ranked):
                for result in setting.results:
                    result.status = "waiting" if place < self.kept(len(ranked)) else "stopped"
        self.record.write()

    def try_more_seeds(self, seeds: Sequence[int]) -> None:
        if not seeds:
            return
        more = []
        for best in self.record.bests().values():
            for seed in seeds if best is not None else ():
                assert best is not None
                point = self.plan.point(best.method, best.values, seed)
                point = self.of_length(point, self.lengths[-1]) if self.lengths else point
                more.append(Result(point, str(self.layout.root / point.name)))
        self.record.results += more
        self.do(more, self.lengths[-1] if self.lengths else None, final=True)

    def do(self, results: Sequence[Result], steps: int | None, *, final: bool) -> None:
        """Bring these runs to this length; those that are there already are read."""
        todo: dict[str, Result] = {}
        for one in results:
            one.commands = tuple(shlex.join(["soka", *words]) for words in self.commands(one.point, final=final))
            if self.is_done(one.point, steps, final=final):
                one.status, one.exit_code = "done", 0
                one.read(Path(one.run), self.metric, steps)
            elif (earlier := self.diverged_before(one)) is not None:
                one.status, one.exit_code, one.error = "failed", ExitCode.TRAINING, earlier
            else:
                todo[one.point.name] = one
        self.record.write()
        if skipped := len(results) - len(todo):
            self.context.reporter.say(f"{skipped} of {len(results)} runs are there already")
        if todo:
            with self.context.reporter.task("sweep", total=len(todo), unit="runs") as progress:
                self.run(todo, steps, progress, final=final)

    def run(self, todo: dict[str, Result], steps: int | None, progress: ProgressTask, *, final: bool) -> None:
        jobs = [
            Job(name, self.commands(one.point, final=final), self.layout.log(name), self.layout.answer(name)) for name, one in todo.items()
        ]

        def begun(job: Job) -> None:
            todo[job.name].status = "running"
            self.record.write()

        devices = devices_for(self.context.device, self.jobs if self.num_processes == 1 else 1)
        try:
            with closing(run_jobs(jobs, self.jobs, devices=devices, begun=begun)) as ends:
                for ended in ends:
                    one = todo[ended.job.name]
                    self.note(one, ended, steps)
                    self.fresh += 1
                    progress.advance(1, **({} if one.metric is None else {self.metric: one.metric}))
        except BaseException:
            for one in todo.values():
                one.status = "interrupted" if one.status == "running" else one.status
            self.record.write()
            raise

    def note(self, one: Result, ended: Ended, steps: int | None) -> None:
        """Keep how a run ended."""
        one.exit_code, one.error = ended.exit_code, ended.error
        one.status = "done" if ended.exit_code == 0 else "failed"
        if one.status == "done":
            one.read(Path(one.run), self.metric, steps)
        else:
            self.context.reporter.warn(f"{one.point.name} failed (exit {ended.exit_code}): {ended.error}; its log: {ended.job.log}")
        self.record.write()

    def is_done(self, point: Point, steps: int | None, *, final: bool = True) -> bool:
        longer = [] if final or steps is None or self.apart else [one for one in self.lengths if one > steps]
        if any(has_passed(self.context_of(self.of_length(point, length)), steps or 0) for length in longer):
            return True
        return is_done(self.context_of(point), self.plan.section.stages if final else "train")

    def context_of(self, point: Point) -> StageContext:
        loaded = LoadedRecipe(point.recipe, point.name, self.plan.source, self.context.loaded.source_text, {})
        return replace(self.context, loaded=loaded, layout=self.layout.run(point.name))

    def diverged_before(self, one: Result) -> str | None:
        """The error of a run that diverged on the inputs of today: it would do so again. --force tries it all the same."""
        if self.context.force or self.earlier.get(one.point.name) != ExitCode.TRAINING:
            return None
        return failed_before(self.context_of(one.point))

    # ---- the end

    def outcome(self) -> Outcome:
        record = self.record
        failed = [one for one in record.results if one.status == "failed"]
        figures = record.figures()
        warnings = marks(record, self.context.recipe)
        for sentence in warnings:
            self.context.reporter.warn(sentence)
        page = write_page(self.layout.report, STAGE, sweep_page(record, self.context.recipe, warnings), figures)
        return Outcome(
            stage=STAGE,
            status="done" if self.fresh else "already done",
            run=self.layout.root,
            figures={**figures, "failed": [one.point.name for one in failed], "marks": list(warnings), "page": str(page)},
            tables=(*tables(record), *failures_table(failed)),
            notes=(f"the page: {page}",),
            next_commands=next_commands(record),
            exit_code=ExitCode.SWEEP if failed else ExitCode.DONE,
        )
