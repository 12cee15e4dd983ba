"""What stands against putting runs side by side: other data or another base ends a comparison, the rest is marked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.difference import difference
from soka_cli.stages.contestant import Contestant

METHOD_RATES = {"lr", "sigma_lr", "lora_b_lr"}  # each method at its own
SEEDED = "seed"
ENOUGH = 2  # seeds


def refuse_unfair(runs: Sequence[Contestant]) -> None:
    """Refuse runs whose losses measure different things.

    Raises:
        SokaError: exit 2, with what differs.
    """
    if stands_against := list(obstacles(runs)):
        raise SokaError(
            "These runs cannot be compared: they did not learn the same thing from the same start.",
            where=", ".join(str(run.root) for run in runs),
            why="\n".join(stands_against),
            hint="compare runs of one base and one data section; --unfair shows them all the same, with this as a warning",
            exit_code=ExitCode.USAGE,
        )


def obstacles(runs: Sequence[Contestant]) -> Iterator[str]:
    """Another base, or other data, each against the first run."""
    first = runs[0]
    for run in runs[1:]:
        if first.inputs.get("base") != run.inputs.get("base"):
            yield f"{first.name} and {run.name} start from different base models ({first.recipe.model.name}, {run.recipe.model.name})"
        ours, theirs = ({"data": one.inputs.get("data")} for one in (first, run))
        yield from (f"{first.name} -> {run.name}: {line}" for line in difference(ours, theirs))


def marks(runs: Sequence[Contestant]) -> list[str]:
    """What a reader has to know before reading a difference as one between methods."""
    return list(dict.fromkeys([*training_marks(runs), *rate_marks(runs), *seed_marks(runs), *protocol_marks(runs), *machine_marks(runs)]))


def training_marks(runs: Sequence[Contestant]) -> Iterator[str]:
    first = runs[0]
    for run in runs:
        if run.record.status != "done":
            yield f"{run.name} is not trained to its end (train is {run.record.status})"
    for run in runs[1:]:
        lines = difference(plain_training(first), plain_training(run))
        yield from (f"trained differently, {first.name} -> {run.name}: {line}" for line in lines)


def plain_training(run: Contestant) -> dict[str, Any]:
    """How it was trained, apart from the learning rates, and how the base was held."""
    train: Mapping[str, Any] = run.inputs.get("train") or {}
    return {
        "model": run.inputs.get("model"),
        "train": {name: value for name, value in train.items() if name not in METHOD_RATES},
    }


def rate_marks(runs: Sequence[Contestant]) -> Iterator[str]:
    """Unequal budgets of learning rates, and best rates at the edge of what was tried."""
    methods = {str(run.inputs.get("adapter")) for run in runs}
    tried = {run.name_without_seed: len(run.trials) or 1 for run in runs}
    if len(methods) > 1 and max(tried.values()) == 1:
        yield (
            "each run has one learning rate, and methods have theirs at different places: this compares runs, not methods "
            "(soka sweep tries one grid for all)"
        )
    elif len(set(tried.values())) > 1:
        yield f"unequal budgets of learning rates: {', '.join(f'{name} {count}' for name, count in tried.items())}"
    elif len({run.trials for run in runs}) > 1:
        yield "equally many learning rates were tried of each, but not the same ones"
    for run in runs:
        rates = sorted(run.trials)
        if len(rates) > 1 and (rate := run.recipe.train.lr) in (rates[0], rates[-1]):
            side = "lowest" if rate == rates[0] else "highest"
            yield f"{run.name_without_seed} has the {side} rate tried ({rate:g}): its best may lie outside"


def seed_marks(runs: Sequence[Contestant]) -> Iterator[str]:
    seeds = {run.inputs.get(SEEDED) for run in runs}
    validation = runs[0].recipe.data.validation
    if len(seeds) > 1 and validation is not None and validation.fraction is not None:
        yield "the held-out rows are drawn by the seed, and the seeds differ: the losses are measured on different rows"
    by_configuration: dict[str, set[Any]] = {}
    for run in runs:
        by_configuration.setdefault(run.configuration, set()).add(run.inputs.get(SEEDED))
    if any(len(some) < ENOUGH for some in by_configuration.values()):
        yield "one seed a configuration: standard errors are over items, and how much another seed changes is not known"


def protocol_marks(runs: Sequence[Contestant]) -> Iterator[str]:
    """Benchmarks that were not asked in one way."""
    asked: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for one in run.evaluations:
            asked.setdefault(one.asked["task"], {})[one.key] = one.asked
    for task, ways in asked.items():
        first, *others = ways.values()
        for other in others:
            lines = "; ".join(difference(first, other))
            yield f"{task} was asked in different ways, whose figures stand in columns of their own and cannot be compared: {lines}"


def machine_marks(runs: Sequence[Contestant]) -> Iterator[str]:
    found = {
        (environment.device, environment.platform, environment.processors, environment.packages.get("torch"))
        for run in runs
        if (environment := run.environment) is not None
    }
    if len(found) > 1:
        yield "the runs were trained on different machines or versions: time and memory cannot be compared"
