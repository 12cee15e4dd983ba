"""What the benchmarks that ask for programs share: programs are cut out of completions and judged in the sandbox."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox import Program, Verdict, judge_all
from soka_cli.tasks.base import Example, Judgement, cut_at
from soka_cli.tasks.exercise import Exercise
from soka_cli.tasks.program import Postprocessing

PASS_AT_1 = "pass@1"
TIMEOUT = 10.0  # seconds of wall clock a program


@dataclass(frozen=True)
class CodeTask(ABC):
    """A benchmark of programs. Its one metric of a completion is pass@1: whether the program passes its tests.

    Readings: `pissa`, the same after the cut that PiSSA's script makes.
    """

    name: str = ""
    metrics: tuple[str, ...] = (PASS_AT_1,)
    readings: tuple[str, ...] = ("pissa",)
    fields: tuple[str, ...] = ()
    gold_fields: tuple[str, ...] = ()

    @property
    @abstractmethod
    def specimen(self) -> Example:
        """As in Task."""

    @abstractmethod
    def example(self, row: dict[str, Any], index: int) -> Example:
        """As in Task; `gold` is the text of an Exercise."""

    @abstractmethod
    def exercise(self, row: Mapping[str, Any], where: str) -> Exercise:
        """The tests of a row that has at least the columns `gold_fields`; SokaError (exit 4) for a damaged one."""

    @abstractmethod
    def program(self, completion: str, exercise: Exercise, how: Postprocessing) -> str:
        """The program that a completion makes."""

    def judge(self, completion: str, example: Example, stops: Sequence[str], readings: Sequence[str] = ()) -> Judgement:
        """One completion, its program found as `soka score` finds it without a protocol."""
        return self.judge_all([(completion, example)], stops, readings)[0]

    def judge_all(
        self,
        answers: Sequence[tuple[str, Example]],
        stops: Sequence[str],
        readings: Sequence[str] = (),
        how: Postprocessing = "span",
        *,
        unsafe: bool = False,
        told: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """Completions and their items, judged together; a program that comes twice is run once.

        Args:
            how: the protocol's post-processing.
            unsafe: whether programs run even where nothing isolates them.
            told: called for each program as its verdict comes.

        Raises:
            SokaError: exit 3, nothing isolates programs here, or a sandbox did not come up; exit 4 for a gold that holds no tests.
        """
        ways: dict[str, Postprocessing] = {PASS_AT_1: how, **{name: "pissa" for name in readings if name in self.readings}}
        wanted = [{metric: self._job(completion, example, stops, way) for metric, way in ways.items()} for completion, example in answers]
        programs = list(dict.fromkeys(program for jobs in wanted for program in jobs.values()))
        found = judge_all(programs, unsafe=unsafe, told=lambda place, verdict: told())
        verdicts = dict(zip(programs, found, strict=True))
        refuse_errors(found)
        return [judgement(jobs, verdicts) for jobs in wanted]

    def _job(self, completion: str, example: Example, stops: Sequence[str], how: Postprocessing) -> Program:
        try:
            exercise = Exercise.from_text(example.gold)
        except ValueError as error:
            raise SokaError(
                f"Item {example.id} has no tests to run.",
                where=f"gold of item {example.id}",
                why=str(error),
                hint=f"give the columns {', '.join(self.gold_fields)}",
                exit_code=ExitCode.DATA,
            ) from error
        code = self.program(cut_at(completion, stops)[0], exercise, how)
        return Program(code, exercise.tests, exercise.setup, TIMEOUT)


def judgement(jobs: Mapping[str, Program], verdicts: Mapping[Program, Verdict]) -> Judgement:
    """What a row of predictions says of one completion."""
    verdict = verdicts[jobs[PASS_AT_1]]
    return Judgement(
        extracted=jobs[PASS_AT_1].code,
        correct={metric: verdicts[program].passed for metric, program in jobs.items()},
        why=verdict.why or None,
        details={"verdict": verdict.verdict, "mode": verdict.mode},
    )


def refuse_errors(verdicts: Sequence[Verdict]) -> None:
    """A program that was not judged is neither right nor wrong, so nothing is recorded."""
    for verdict in verdicts:
        if verdict.verdict == "error":
            raise SokaError(
                "A program could not be judged.",
                where=f"sandbox, layer {verdict.layer}",
                why=verdict.why,
                hint="give the same command again; it goes on where it stopped. soka doctor says what the sandbox needs",
                exit_code=ExitCode.ENVIRONMENT,
            )
