"""SoKA beside LoRA, PiSSA, DoRA, LoKr and full fine-tuning on small trained models, each at its own best learning rate.

python -m benchmarks.comparison SETTING [--jobs 2] [--runs runs/comparison] [--methods NAME ...] [--only rates | table] [--round N]

Two sweeps a setting. `rates` looks for each method's best learning rate on validation rows, one seed: two rates a factor of four
apart, then by factors of two until both neighbours of the best one were tried. `final` takes the best rate of each, three other
seeds, and measures on test rows that the first sweep never saw. The recipes of both are written beside the results, and run by
`soka sweep`; a second call goes on where the first stopped. What stands in benchmarks/results/comparison.md comes from `--only table`.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contest import METHODS, SECOND_RATES, SETTINGS, Setting
from soka_cli.stages.contestant import Contestant, Curve, contestant

HERE = Path(__file__).parent / "results" / "comparison"
FIRST_RATES = (5e-3, 2e-2)
SEEDS = (1, 2, 3)
MOST_LOOKS = 8


@dataclass(frozen=True)
class Part:
    """One of a setting's sweeps: `rates` or `final`, and the round that it belongs to."""

    setting: Setting
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.kind}" + ("" if self.number == 1 else f"-{self.number}")

    def recipe(self, methods: dict[str, dict[str, Any]]) -> Path:
        """The sweep's recipe file, with its command above it."""
        final = self.kind == "final"
        recipe = self.setting.recipe(HERE, test=final)
        stages = "eval" if final and self.setting.eval else "train"
        recipe["sweep"] = {"methods": methods, "seeds": list(SEEDS if final else (0,)), "stages": stages, "metric": "eval_loss"}
        about = "Each method at its best rate, on test rows, three seeds." if final else "Learning rates, on validation rows."
        header = f"# {self.setting.about}.\n# {about}\n#   soka sweep -r benchmarks/results/comparison/{self.name}.yaml --jobs 2\n"
        HERE.mkdir(parents=True, exist_ok=True)
        path = HERE / f"{self.name}.yaml"
        path.write_text(header + yaml.safe_dump(recipe, sort_keys=False, width=130, default_flow_style=None), encoding="utf-8")
        return path

    def run(self, methods: dict[str, dict[str, Any]], root: Path, jobs: int) -> list[dict[str, Any]]:
        """Run the sweep and read what its runs came to; runs that diverged have no metric."""
        words = ["sweep", "-r", str(self.recipe(methods)), "-d", str(root / self.name), "--jobs", str(jobs), "--device", "cpu", "--quiet"]
        done = subprocess.run([sys.executable, "-m", "soka_cli", *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode not in (0, 9):
            raise SystemExit(f"{self.name}: exit {done.returncode}")
        return read(root / self.name)


def read(sweep: Path) -> list[dict[str, Any]]:
    """The runs of a sweep directory, each with its folder."""
    runs = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return [run | {"folder": sweep / run["name"]} for run in runs]


def entries(name: str, setting: Setting, tried: set[float]) -> dict[str, dict[str, Any]]:
    """The method's entries in a sweep: one with a grid of rates; one for each rate where a second rate goes with it."""
    options = METHODS[name](setting)
    if name not in SECOND_RATES:
        return {name: {"set": options, "grid": {"train.lr": sorted(tried)}}}
    option, times = SECOND_RATES[name]
    return {f"{name}.{rate:g}": {"set": options | {"train.lr": rate, option: times * rate}} for rate in sorted(tried)}


def of_method(runs: list[dict[str, Any]], name: str) -> list[tuple[float, dict[str, Any]]]:
    """A method's runs with their learning rates."""
    if name in SECOND_RATES:
        return [(float(run["method"].removeprefix(f"{name}.")), run) for run in runs if run["method"].startswith(f"{name}.")]
    return [(run["values"]["train.lr"], run) for run in runs if run["method"] == name]


def losses(runs: list[dict[str, Any]], name: str) -> dict[float, float]:
    """Loss by learning rate; one that diverged counts as infinite."""
    return {rate: math.inf if run["metric"] is None else run["metric"] for rate, run in of_method(runs, name)}


def untried(tried: dict[float, float]) -> set[float]:
    """Neighbours of the best rate, by factors of two, that were not tried."""
    best = min(tried, key=lambda rate: tried[rate])
    wanted = {best / 2, best * 2}
    return {rate for rate in wanted if not any(math.isclose(rate, one, rel_tol=1e-6) for one in tried)}


def rates(setting: Setting, names: list[str], root: Path, jobs: int, number: int) -> dict[str, float]:
    """Each method's best rate."""
    part = Part(setting, "rates", number)
    grids = {name: set(FIRST_RATES) for name in names}
    for _ in range(MOST_LOOKS):
        runs = part.run({key: one for name in names for key, one in entries(name, setting, grids[name]).items()}, root, jobs)
        missing = {name: untried(losses(runs, name)) for name in names}
        if not any(missing.values()):
            break
        for name, more in missing.items():
            grids[name] |= more
    found = {name: losses(runs, name) for name in names}
    return {name: min(tried, key=lambda rate, tried=tried: tried[rate]) for name, tried in found.items()}


# ---- the table


def gradient_norm(run: Contestant) -> float:
    """The median over steps."""
    return statistics.median(step.grad_norm for step in run.findings.steps if step.grad_norm is not None)


def steps_to(readings: Curve, loss: float) -> float:
    """Steps until the held-out loss is at most so much, on straight lines between readings; infinite where it never is."""
    for (before, high), (after, low) in itertools.pairwise(readings):
        if low <= loss:
            return before if high <= loss else before + (after - before) * (high - loss) / (high - low)
    return math.inf


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} +- {deviation:.3f}"


def table(setting: Setting, root: Path) -> None:
    """All rounds' methods by loss; differences are paired by seed, against LoRA at 100%."""
    runs = [run for sweep in sorted(root.glob(f"{setting.name}-final*")) for run in read(sweep) if run["metric"] is not None]
    by_method = {name: found for name in METHODS if (found := sorted(of_method(runs, name), key=lambda one: one[1]["seed"]))}
    peer = {run["seed"]: run["metric"] for _, run in by_method["lora"]}
    goal = statistics.mean(peer.values())
    columns = ["method", "parameters", "rate", "test loss", "less than LoRA", f"steps to {goal:.3f}", "gradient norm"]
    columns += ["strict %"] if setting.eval else []
    print(f"\n{setting.about}\n\n" + "| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for name, seeds in sorted(by_method.items(), key=lambda item: statistics.mean(run["metric"] for _, run in item[1])):
        found = [run for _, run in seeds]
        trained = [contestant(run["folder"]) for run in found]
        reached = statistics.median(steps_to(run.held_out(), goal) for run in trained)
        cells = [
            name,
            f"{found[0]['parameters']:,}",
            f"{seeds[0][0]:.3g}",
            spread([run["metric"] for run in found]),
            spread([peer[run["seed"]] - run["metric"] for run in found if run["seed"] in peer]),
            "never" if math.isinf(reached) else f"{reached:.0f}",
            f"{statistics.median(map(gradient_norm, trained)):.2f}",
        ]
        cells += [spread([strict(run) for run in trained])] if setting.eval else []
        print("| " + " | ".join(cells) + " |")


def strict(run: Contestant) -> float:
    """Percent of the test problems that the adapter answered."""
    (asked,) = (one for one in run.evaluations if one.kind == "adapter")
    return 100 * asked.metrics["strict"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=sorted(SETTINGS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), help="instead of the setting's own")
    parser.add_argument("--only", choices=["rates", "table"])
    parser.add_argument("--round", type=int, default=1, help="names the recipes of a further round")
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    if options.only != "table":
        best = rates(setting, options.methods or list(setting.methods), options.runs, options.jobs, options.round)
        print(json.dumps(best), flush=True)
        if options.only != "rates":
            methods = {key: one for name, rate in best.items() for key, one in entries(name, setting, {rate}).items()}
            Part(setting, "final", options.round).run(methods, options.runs, options.jobs)
    if options.only in (None, "table"):
        table(setting, options.runs)


if __name__ == "__main__":
    main()
