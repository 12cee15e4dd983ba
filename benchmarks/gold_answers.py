"""Gold answers judged by every metric that should take them for right, and the gold answers that symbolic can't parse.

python -m benchmarks.gold_answers --data FOLDER [--out FILE]

`--data` is a folder with gsm8k/ and math/ as upstream writes them. A gold answer is judged as its own solution, and behind the phrase
of each script whose reading is a metric.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from soka_cli.tasks.base import Example, Task, task_named
from soka_cli.tasks.latex_text import tidy
from soka_cli.tasks.protocol import COMMON_STOPS
from soka_cli.tasks.sympy_judge import read

FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "gsm8k": {
        "{target}": ("strict", "flexible", "numeric"),
        "It is {gold}": ("flexible", "numeric"),
        "The answer is {gold}.": ("gsm8k_cot", "flexible", "numeric"),
        "The answer is: {gold}": ("metamath", "flexible", "numeric"),
    },
    "math": {
        "{target}": ("exact", "symbolic", "math_verify"),
        "The answer is: {gold}": ("metamath",),
        "Final Answer: The final answer is ${gold}$. I hope it is correct.": ("minerva_math", "hendrycks_math", "exact", "symbolic"),
    },
}


def examples(task: Task, path: Path) -> list[Example]:
    return [task.example(json.loads(line), index) for index, line in enumerate(path.read_text(encoding="utf-8").splitlines())]


def judged(task: Task, items: Sequence[Example], form: str, metrics: Sequence[str]) -> Iterator[tuple[str, list[Example]]]:
    """Each metric and the items that it takes for wrong."""
    wrong: dict[str, list[Example]] = {metric: [] for metric in metrics}
    readings = [metric for metric in metrics if metric in task.readings]
    for item in items:
        text = form.replace("{target}", item.target).replace("{gold}", item.gold)
        correct = task.judge(text, item, COMMON_STOPS, readings).correct
        for metric in metrics:
            wrong[metric] += [] if correct[metric] else [item]
    yield from wrong.items()


def unparsed(golds: Sequence[str]) -> list[str]:
    """Those of which Math-Verify makes nothing; symbolic compares them as text."""
    return [gold for gold in golds if read(tidy(gold)) is None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = ["| task | gold answer as | metric | right | wrong |", "| --- | --- | --- | --- | --- |"]
    for name, forms in FORMS.items():
        task = task_named(name)
        items = examples(task, options.data / name / "test.jsonl")
        for form, metrics in forms.items():
            for metric, wrong in judged(task, items, form, metrics):
                named = ", ".join(f"{item.id} `{json.dumps(item.gold)[1:-1]}`" for item in wrong[:20])
                report.append(f"| {name} | `{form}` | {metric} | {len(items) - len(wrong)} of {len(items)} | {named} |")
    math = task_named("math")
    golds = sorted({item.gold for split in ("train", "test") for item in examples(math, options.data / "math" / f"{split}.jsonl")})
    failed = unparsed(golds)
    report += ["", f"Gold answers of MATH, train and test, that symbolic can't parse: {len(failed)} of {len(golds)} different ones.", ""]
    report += [f"- `{json.dumps(gold)[1:-1]}`" for gold in failed]
    print("\n".join(report))
    if options.out is not None:
        options.out.write_text("\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
