"""Kills `soka train` with -9 at random moments and compares what it ends with: the bytes of a run that was never stopped.

python -m tests.soak.train_kills [--kills 100] [--seed 0] [--pairs 10]

GPT-2 with dropout, two processes that make batches ahead, a checkpoint every second step, held-out loss between. Each kill falls a
random time after a random number of further steps, of which none means at any time from the start; the run goes on, is killed again,
until it ends and is compared: the adapter's bytes, and every row of metrics.jsonl but its times. Every tenth run is one of two
processes, of which the launcher or a worker is killed. Processes come from a server that has imported what they need.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soka_cli.cli.app import main as soka
from soka_cli.run.layout import RunLayout
from tests.builders import gsm8k_file, recipe_mapping, tiny_model_folder, write_recipe
from tests.cli.test_train_processes import curve, weights
from tests.launched import environment
from tests.soak.decompose_kills import wait_for_orphans, workers

STEPS = 40
PRELOADED = ("soka_cli.stages.train", "soka_cli.stages.decompose", "transformers.trainer", "soka_cli.run.interrupt")


def words(folder: Path, run: RunLayout) -> list[str]:
    return ["train", "--recipe", str(folder / "recipe.yaml"), "--run", str(run.root), "--device", "cpu", "--quiet"]


def alone(arguments: list[str]) -> None:
    """soka in a forked process, silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    sys.exit(soka(arguments))


def recipe(folder: Path) -> None:
    tiny_model_folder(folder / "model", "gpt2")
    made = recipe_mapping(
        folder / "model", gsm8k_file(folder), adapter={"target_modules": ["c_attn"]}, data={"validation": {"fraction": 0.2}}
    )
    made["train"] |= {"steps": STEPS, "save_every": 2, "eval_every": 5, "micro_batch_size": 1, "data_workers": 2}
    write_recipe(folder / "recipe.yaml", made)


def steps_taken(run: RunLayout) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def wait_for_a_moment(run: RunLayout, ended: Callable[[], bool], choose: random.Random | None) -> bool:
    """A random time after a random number of further steps; without a chooser never. False where it ended by itself before."""
    wanted = steps_taken(run) + choose.randint(0, STEPS // 4) if choose else STEPS + 1
    while steps_taken(run) < wanted and not ended():
        time.sleep(0.005)
    time.sleep(choose.uniform(0, 0.3) if choose else 0)
    return not ended()


def killed_alone(context: Any, folder: Path, run: RunLayout, choose: random.Random | None = None) -> bool:
    """Whether it was killed before it ended by itself."""
    process = context.Process(target=alone, args=(words(folder, run),))
    process.start()
    stopped = wait_for_a_moment(run, lambda: process.exitcode is not None, choose)
    if stopped:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert stopped or process.exitcode == 0, f"exit {process.exitcode}"
    return stopped


def killed_in_two(folder: Path, run: RunLayout, choose: random.Random | None = None) -> bool:
    command = [sys.executable, "-m", "soka_cli", *words(folder, run), "--num-processes", "2"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stopped = wait_for_a_moment(run, lambda: process.poll() is not None, choose)
    if stopped and choose:
        os.kill(choose.choice([process.pid, *workers(process.pid)]), signal.SIGKILL)
    process.wait()
    wait_for_orphans(folder)
    assert stopped or process.returncode == 0, f"exit {process.returncode}"
    return stopped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=10, help="each run of this number is one of two processes; 0 for none")
    options = parser.parse_args()
    choose = random.Random(options.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory(prefix="soka-train-kills-") as name:
        folder, kills, ends = Path(name), 0, 0
        recipe(folder)
        one, two = RunLayout(folder / "one"), RunLayout(folder / "two")
        killed_alone(context, folder, one)
        if options.pairs:
            killed_in_two(folder, two)
        while kills < options.kills:
            run, before = RunLayout(folder / f"run-{ends}"), kills
            pair = bool(options.pairs) and ends % options.pairs == options.pairs - 1
            while killed_in_two(folder, run, choose) if pair else killed_alone(context, folder, run, choose):
                kills += 1
            assert weights(run) == weights(two if pair else one), f"run {ends}: other weights"
            assert curve(run) == curve(two if pair else one), f"run {ends}: another curve"
            ends += 1
            of = "two processes" if pair else "one process"
            print(f"{kills} kills, {ends} ends: a run of {of}, killed {kills - before} times, the same bytes", flush=True)
            shutil.rmtree(run.root)


if __name__ == "__main__":
    main()
