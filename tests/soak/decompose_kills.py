"""Kills `soka decompose` with -9 at random moments, in one process and in two, and compares what it ends with.

python -m tests.soak.decompose_kills [--kills 20] [--seed 0]

Each kill falls a random time after a random number of further modules was finished, of which none means at any time from the
start. In two processes the launcher or one of its workers is killed. After four kills a run goes on to its end and is compared.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.streaming import recipe, synthetic_llama
from soka_cli.run.layout import RunLayout
from tests.soak.sameness import differences

WIDTH, LAYERS = 512, 4
MODULES = 7 * LAYERS
KILLS_A_RUN = 4


def command(folder: Path, run: RunLayout, processes: int) -> list[str]:
    words = ["decompose", "--recipe", str(folder / "recipe.yaml"), "--run", str(run.root), "--device", "cpu", "--quiet"]
    return [sys.executable, "-m", "soka_cli", *words, "--num-processes", str(processes)]


def workers(launcher: int) -> list[int]:
    """Process ids of a launcher's children."""
    return [int(one) for one in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def parts(run: RunLayout) -> int:
    return len(list(run.decompose_parts.glob("[!.]*"))) if run.decompose_parts.is_dir() else 0


def killed(words: list[str], run: RunLayout, choose: random.Random) -> bool:
    """Start the command and kill it, or one of its workers, at a random moment; False where it ended by itself before."""
    there = parts(run)
    wanted = there + choose.randint(0, (MODULES - there) // 2)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while parts(run) < wanted and process.poll() is None:
        time.sleep(0.002)
    time.sleep(choose.uniform(0, 0.3 if wanted > there else 8))
    if process.poll() is not None:
        assert process.returncode == 0
        return False
    os.kill(choose.choice([process.pid, *workers(process.pid)]), signal.SIGKILL)
    process.wait()
    return True


def wait_for_orphans(folder: Path) -> None:
    """Until no process works for this folder any more."""
    started = time.monotonic()
    while subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout:
        assert time.monotonic() - started < 60, "a worker outlived its launcher"
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soka-kills-") as name:
        folder = Path(name)
        synthetic_llama(folder / "model", width=WIDTH, inner=2 * WIDTH, layers=LAYERS, power_law=False)
        recipe(folder, folder / "model")
        undisturbed, run = RunLayout(folder / "undisturbed"), RunLayout(folder / "run")
        subprocess.run(command(folder, undisturbed, 1), check=True, capture_output=True)
        kills = ends = 0
        while kills < options.kills:
            processes = 1 + kills % 2
            if killed(command(folder, run, processes), run, choose):
                kills += 1
                wait_for_orphans(folder)
                print(f"kill {kills}: {processes} processes, {parts(run)} of {MODULES} parts", flush=True)
                if kills % KILLS_A_RUN and kills < options.kills:
                    continue
                subprocess.run(command(folder, run, processes), check=True, capture_output=True)
            assert not (found := differences(undisturbed, run)), found
            shutil.rmtree(run.root)
            ends += 1
        print(f"{kills} kills, {ends} runs to the end: each is the undisturbed one, byte for byte")


if __name__ == "__main__":
    main()
