"""What `soka --help` costs beyond the interpreter itself, whole processes, interleaved.

python -m benchmarks.startup [--repeats 15]
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "soka --help": ["-m", "soka_cli", "--help"],
    "soka train --help": ["-m", "soka_cli", "train", "--help"],
}


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(repeats + 1):
        for name, words in COMMANDS.items():
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
