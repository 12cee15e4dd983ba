"""What `soka --help` and a plan of LLaMA-2-70B cost beyond the interpreter itself, whole processes, interleaved.

python -m benchmarks.startup [--repeats 15]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "soka --help": ["-m", "soka_cli", "--help"],
    "soka train --help": ["-m", "soka_cli", "train", "--help"],
    "import torch": ["-c", "import torch"],
}
PLAN = ["-m", "soka_cli", "plan", "-r", "gsm8k", "--offline", "model.name=meta-llama/Llama-2-70b-hf", "adapter.target_modules=all-linear"]


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        commands = COMMANDS | {"soka plan, 70B, all-linear": [*PLAN, "-d", folder]}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_number in range(repeats + 1):
            for name, words in commands.items():
                elapsed = seconds(words)
                if round_number:  # the first round warms the file cache
                    times[name].append(elapsed)
    bare = statistics.median(times["python -c pass"])
    print(f"| command | median s | min-max s | beyond python | (n = {repeats})\n| --- | --- | --- | --- |")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.3f} | {min(values):.3f}-{max(values):.3f} | {median - bare:.3f} |")


if __name__ == "__main__":
    main()
