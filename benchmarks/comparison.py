"""SoKA beside LoRA, PiSSA, DoRA, LoKr and full fine-tuning on small trained models, each at its own best learning rate.

python -m benchmarks.comparison SETTING [--jobs 2] [--runs runs/comparison] [--methods NAME ...] [--only rates | final | table] [--round N]

Two sweeps a setting. `rates` looks for each method's best learning rate on validation rows, one seed: three rates a factor of four
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
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contest import METHODS, SETTINGS, Setting

HERE = Path(__file__).parent / "results" / "comparison"
FIRST_RATES = (1.25e-3, 5e-3, 2e-2)
SEEDS = (1, 2, 3)
MOST_ROUNDS = 8


def recipe_file(setting: Setting, part: str, methods: dict[str, dict[str, Any]], seeds: tuple[int, ...], number: int) -> Path:
    """The recipe of one sweep, with its command above it."""
    path = HERE / f"{setting.name}-{part}{'' if number == 1 else f'-{number}'}.yaml"
    recipe = setting.recipe(HERE, test=part == "final")
    asked = part == "final" and setting.eval
    recipe["sweep"] = {"methods": methods, "seeds": list(seeds), "stages": "eval" if asked else "train", "metric": "eval_loss"}
    header = (
        f"# {setting.about}\n# {'Learning rates on validation rows.' if part == 'rates' else 'Best rates on test rows, three seeds.'}\n"
        f"#   soka sweep -r benchmarks/results/comparison/{path.name} --jobs 2\n"
    )
    HERE.mkdir(parents=True, exist_ok=True)
    path.write_text(header + yaml.safe_dump(recipe, sort_keys=False, width=130, default_flow_style=None), encoding="utf-8")
    return path


def swept(path: Path, root: Path, jobs: int) -> list[dict[str, Any]]:
    """Run a sweep and read what its runs came to; runs that diverged stay without a metric."""
    command = [
        sys.executable,
        "-m",
        "soka_cli",
        "sweep",
        "-r",
        str(path),
        "-d",
        str(root),
        "--jobs",
        str(jobs),
        "--device",
        "cpu",
        "--quiet",
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode not in (0, 9):
        raise SystemExit(f"{path.name}: exit {done.returncode}")
    found: list[dict[str, Any]] = json.loads((root / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return found


def losses(runs: list[dict[str, Any]], method: str) -> dict[float, float]:
    """Loss by learning rate; one that diverged counts as infinite."""
    return {run["values"]["train.lr"]: math.inf if run["metric"] is None else run["metric"] for run in runs if run["method"] == method}


def untried(tried: dict[float, float]) -> set[float]:
    """Neighbours of the best rate, by factors of two, that were not tried."""
    best = min(tried, key=lambda rate: tried[rate])
    wanted = {best / 2, best * 2}
    return {rate for rate in wanted if not any(math.isclose(rate, one, rel_tol=1e-6) for one in tried)}


def rates(setting: Setting, names: list[str], root: Path, jobs: int, number: int) -> dict[str, float]:
    """Each method's best rate."""
    grids = {name: set(FIRST_RATES) for name in names}
    for _ in range(MOST_ROUNDS):
        methods = {name: {"set": METHODS[name](setting), "grid": {"train.lr": sorted(grids[name])}} for name in names}
        runs = swept(recipe_file(setting, "rates", methods, (0,), number), root / f"{setting.name}-rates", jobs)
        missing = {name: untried(losses(runs, name)) for name in names}
        if not any(missing.values()):
            break
        for name, more in missing.items():
            grids[name] |= more
    found = {name: losses(runs, name) for name in names}
    return {name: min(tried, key=lambda rate, tried=tried: tried[rate]) for name, tried in found.items()}


def final(setting: Setting, best: dict[str, float], root: Path, jobs: int, number: int) -> None:
    methods = {name: {"set": METHODS[name](setting), "grid": {"train.lr": [rate]}} for name, rate in best.items()}
    swept(recipe_file(setting, "final", methods, SEEDS, number), root / f"{setting.name}-final", jobs)


# ---- the table


def curve(root: Path) -> list[tuple[int, float]]:
    """Readings of the held-out loss by step."""
    rows = [json.loads(line) for line in (root / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]


def gradient_norms(root: Path) -> float:
    """The median over steps."""
    rows = [json.loads(line) for line in (root / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(row["grad_norm"] for row in rows if row.get("grad_norm") is not None)


def steps_to(readings: list[tuple[int, float]], loss: float) -> float:
    """Steps until the held-out loss is at most so much, on straight lines between readings; infinite where it never is."""
    for (before, high), (after, low) in itertools.pairwise(readings):
        if low <= loss:
            return before if high <= loss else before + (after - before) * (high - loss) / (high - low)
    return math.inf


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} +- {deviation:.3f}"


def table(setting: Setting, root: Path) -> None:
    """Rows by loss; differences are paired by seed, against LoRA at 100%."""
    folder = root / f"{setting.name}-final"
    runs = [run for run in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"] if run["metric"] is not None]
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda one: one["seed"]):
        by_method.setdefault(run["method"], []).append(run)
    peer = {run["seed"]: run["metric"] for run in by_method["lora"]}
    goal = statistics.mean(peer.values())
    score = setting.stages != "train"
    columns = [
        "method",
        "parameters",
        "rate",
        "test loss",
        "less than LoRA",
        f"steps to {goal:.3f}",
        "gradient norm",
        *(["strict"] if score else []),
    ]
    print(f"\n{setting.about}\n\n" + "| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for name, found in sorted(by_method.items(), key=lambda item: statistics.mean(run["metric"] for run in item[1])):
        places = [folder / Path(run["run"]).name for run in found]
        differences = [peer[run["seed"]] - run["metric"] for run in found if run["seed"] in peer]
        reached = statistics.median(steps_to(curve(place), goal) for place in places)
        cells = [
            name,
            f"{found[0]['parameters']:,}",
            f"{found[0]['values']['train.lr']:.2g}",
            spread([run["metric"] for run in found]),
            spread(differences),
            "never" if math.isinf(reached) else f"{reached:.0f}",
            f"{statistics.median(gradient_norms(place) for place in places):.2f}",
        ]
        if score:
            entry = next(iter(sorted((places[0] / "eval").iterdir()))).name
            answers = [json.loads((place / "eval" / entry / "scores.json").read_text(encoding="utf-8")) for place in places]
            cells.append(spread([100 * one["metrics"]["strict"]["value"] for one in answers]))
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=sorted(SETTINGS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), help="instead of the setting's own")
    parser.add_argument("--only", choices=["rates", "final", "table"])
    parser.add_argument("--round", type=int, default=1, help="names the recipes of a further round")
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    if options.only != "table":
        best = rates(setting, options.methods or list(setting.methods), options.runs, options.jobs, options.round)
        print(json.dumps(best), flush=True)
        if options.only != "rates":
            final(setting, best, options.runs, options.jobs, options.round)
    if options.only in (None, "table"):
        table(setting, options.runs)


if __name__ == "__main__":
    main()
