"""The paper's two notes on a training that goes badly, told from the numbers of metrics.jsonl."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from soka_cli.recipe.schema import AdapterSection
from soka_cli.run.reporter import Reporter

NORM = 2.0  # the paper: above it the rank may be too low
SLOW_AFTER = 1000  # steps; the paper: slow convergence beyond them may mean too aggressive an energy threshold
WINDOW = 100  # steps whose mean loss is compared
LEAST_FALL = 0.05  # share of the first steps' loss; less than this is slow. The paper gives no number


STEEP = "gradient norm"


class Logged(Protocol):
    """A row of metrics.jsonl."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float | None: ...


@dataclass(frozen=True)
class Row:
    """What of a row the symptoms are told from."""

    step: int
    loss: float
    grad_norm: float | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Row":
        return cls(row["step"], row["loss"], row.get("grad_norm"))


@dataclass(frozen=True)
class Symptom:
    """One note, with the numbers behind it and what to try."""

    name: str
    step: int
    sentence: str
    advice: str

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.sentence} {self.advice}"


class Watch:
    """Tells each symptom once, when it first shows.

    Args:
        rows: those of metrics.jsonl, which grow.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], adapter: AdapterSection, reporter: Reporter) -> None:
        self.rows = rows
        self.adapter = adapter
        self.reporter = reporter
        self.told = {found.name for found in self._found()}  # a resumed run has told them before
        self.judged = bool(rows) and rows[-1]["step"] >= SLOW_AFTER

    def _found(self) -> list["Symptom"]:
        return symptoms([Row.of(row) for row in self.rows], self.adapter)

    def look(self) -> None:
        """After a new row."""
        last = Row.of(self.rows[-1])
        due = last.step >= SLOW_AFTER and not self.judged
        self.judged = self.judged or due
        if not due and (STEEP in self.told or last.grad_norm is None or last.grad_norm <= NORM):
            return  # nothing that could be new
        for found in self._found():
            if found.name not in self.told:
                self.told.add(found.name)
                self.reporter.warn(str(found))


def symptoms(rows: Sequence[Logged], adapter: AdapterSection) -> list[Symptom]:
    """The notes that apply to a run so far. They are about SoKA's ranks, and gradient norms depend on the parametrisation, so a run of
    another method has none."""
    if adapter.method != "soka":
        return []
    return [found for found in (steep(rows, adapter), slow(rows, adapter)) if found is not None]


def steep(rows: Sequence[Logged], adapter: AdapterSection) -> Symptom | None:
    """A gradient norm above 2."""
    above = [(row.grad_norm, row.step) for row in rows if row.grad_norm is not None and row.grad_norm > NORM]
    if not above:
        return None
    norm, at = max(above)
    return Symptom(
        STEEP,
        above[0][1],
        f"The gradient norm is above {NORM:g} in {len(above)} of {len(rows)} logged steps, first at step {above[0][1]}, "
        f"at most {norm:.3g} at step {at}.",
        f"The rank may be too low: {more_terms(adapter)}; or lower train.lr.",
    )


def slow(rows: Sequence[Logged], adapter: AdapterSection) -> Symptom | None:
    """After 1,000 steps the loss has hardly fallen."""
    first = [row.loss for row in rows if row.step <= WINDOW]
    last = [row.loss for row in rows if SLOW_AFTER - WINDOW < row.step <= SLOW_AFTER]
    reached = next((row.step for row in rows if row.step >= SLOW_AFTER), None)
    if reached is None or not first or not last:
        return None
    before, after = sum(first) / len(first), sum(last) / len(last)
    if after < (1 - LEAST_FALL) * before:
        return None
    return Symptom(
        "slow convergence",
        reached,
        f"After {SLOW_AFTER:,} steps the loss is {after:.4g}, over the first {WINDOW} it was {before:.4g} (means of {WINDOW} steps): "
        f"it fell by {1 - after / before:.1%}.",
        f"The energy threshold may be too aggressive: {more_terms(adapter)}; or raise train.lr.",
    )


def more_terms(adapter: AdapterSection) -> str:
    """How this rank rule is asked for more."""
    rank = adapter.rank
    if rank.rule == "fixed":
        return f"adapter.rank.value={2 * (rank.value or 1)}"
    if rank.rule == "budget":
        return f"adapter.rank.parameters={2 * (rank.parameters or 1)}"
    energy = f"adapter.rank.tau={min(0.99, round((1 + rank.tau) / 2, 3)):g}, or " if rank.rule in ("min", "energy") else ""
    return f"{energy}adapter.rank.max={2 * rank.max}; where the elbow decides (layers.json), {{rule: fixed, value: {rank.max}}}"
