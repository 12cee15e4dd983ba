"""soka's lm-eval protocols beside lm-evaluation-harness 0.4.13 itself: the same prompts, completions and scores, item by item.

python -m benchmarks.parity_lm_eval --model FOLDER --data FOLDER [--limit 50] [--max-new-tokens 64] [--out FILE]

Needs the extra parity (lm_eval[hf,math]==0.4.13) in soka's environment or one beside it, and no network. The harness's own task
files are used; only where their rows lie is changed. `--data` is a folder with gsm8k/, math/ and mbpp/ as upstream writes them.

Each task is run twice. With the model, completions come from both programs. Then both judge completions made from the gold answers,
right and wrong, since a small model's answers are all wrong.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_ALLOW_CODE_EVAL": "1",
    "TQDM_DISABLE": "1",
}

import evaluate
import lm_eval
import yaml
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.stages.context import StageContext
from soka_cli.stages.evaluate import evaluate as soka_eval
from soka_cli.tasks.base import task_named
from soka_cli.tasks.protocol import protocol_named

Row = dict[str, Any]
Key = tuple[str, str]  # the harness's metric and filter

CONTEXT = 8192  # positions; the shots of a five-shot prompt fill a small model's own context, and both programs would cut them
SUBJECTS = ("algebra", "counting_and_prob", "geometry", "intermediate_algebra", "num_theory", "prealgebra", "precalc")
SUBJECT_NAMES = ("Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra", "Precalculus")
TASKS = Path(lm_eval.__file__).parent / "tasks"


@dataclass(frozen=True)
class Pair:
    """One harness task (or group) and the protocol that repeats it."""

    harness: str
    files: tuple[str, ...]
    task: str
    protocol: str
    metrics: dict[Key, str]
    rows: Callable[[Path, int], list[Row]]
    train: str | None = None
    made_up: Callable[[Sequence[Row], int], Iterable[str]] = field(default=lambda rows, index: ())


class CodeEval:
    """Stands in for `evaluate`'s code_eval, which its wheel does not carry: the same program, in a fresh Python process."""

    def compute(self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> tuple[dict[str, float], None]:
        right = [passes(f"{some[0]}\n{test}") for some, test in zip(predictions, references, strict=True)]
        return {"pass@1": sum(right) / len(right)}, None


def passes(program: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-"], input=program.encode(), cwd=folder, capture_output=True, timeout=10, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


class Recorded(LM):
    """Answers each prompt with a completion that was written beforehand."""

    def __init__(self, completions: dict[str, str]) -> None:
        super().__init__()
        self.completions = completions

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.completions[request.args[0]] for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@dataclass(frozen=True)
class Asked:
    """One item as a program handled it."""

    prompt_sha256: str
    completion: str
    correct: dict[str, bool]


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


# ---- rows


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gsm8k_rows(data: Path, limit: int) -> list[Row]:
    return lines(data / "gsm8k" / "test.jsonl")[:limit]


def math_rows(data: Path, limit: int) -> list[Row]:
    """The first problems of each subject, subject by subject as the harness's groups ask them."""
    every = lines(data / "math" / "test.jsonl")
    each = -(-limit // len(SUBJECTS))
    return [row for name in SUBJECT_NAMES for row in [one for one in every if one["type"] == name][:each]]


def mbpp_rows(data: Path, limit: int) -> list[Row]:
    return [row for row in lines(data / "mbpp" / "mbpp.jsonl") if 11 <= row["task_id"] <= 510][:limit]


# ---- completions made from gold answers


def made_up_gsm8k(rows: Sequence[Row], index: int) -> Iterable[str]:
    gold, other = (rows[place]["answer"].rsplit("#### ", 1)[1] for place in (index, index - 1))
    yield rows[index]["answer"]
    yield from (f"#### {other}", f"####{gold}", f"#### ${gold}", f"#### {gold}.", f"#### {gold}.0", f"#### {gold} in 3 steps")
    yield from (f"The answer is {gold}.", f"The answer is {gold}", f"The answer is ${gold}. Or 7.", f"{gold}...", "none", "")


def made_up_math(rows: Sequence[Row], index: int) -> Iterable[str]:
    task = task_named("math")
    gold, other = (task.example(rows[place], 0).gold for place in (index, index - 1))
    hoped = "Final Answer: The final answer is ${}$. I hope it is correct."
    yield rows[index]["solution"]
    yield from (hoped.format(gold), hoped.format(other), hoped.format(f"x = {gold}"), hoped.format(gold)[:-25], f"${gold}$", gold)
    yield from (f"$x$ is ${gold}$", rf"\boxed{{{gold}}}", rf"so $\boxed{{{other}}}$", f"The answer is: {gold}", f"{gold} / 2", "")


def made_up_mbpp(rows: Sequence[Row], index: int) -> Iterable[str]:
    yield from (rows[index]["code"], rows[index - 1]["code"], "raise SystemExit(1)", "def f(:", "")


SUBJECT_FILE = "{0}/{0}_{1}.yaml"
PAIRS = (
    Pair(
        "gsm8k",
        ("gsm8k/gsm8k.yaml",),
        "gsm8k",
        "lm-eval",
        {("exact_match", "strict-match"): "strict", ("exact_match", "flexible-extract"): "flexible"},
        gsm8k_rows,
        "gsm8k/train.jsonl",
        made_up_gsm8k,
    ),
    Pair(
        "gsm8k_cot",
        ("gsm8k/gsm8k-cot.yaml",),
        "gsm8k",
        "lm-eval-cot",
        {("exact_match", "strict-match"): "gsm8k_cot", ("exact_match", "flexible-extract"): "flexible"},
        gsm8k_rows,
        made_up=made_up_gsm8k,
    ),
    Pair(
        "minerva_math",
        tuple(SUBJECT_FILE.format("minerva_math", subject) for subject in SUBJECTS),
        "math",
        "lm-eval-minerva",
        {("exact_match", "none"): "minerva_math", ("math_verify", "none"): "math_verify"},
        math_rows,
        "math/train.jsonl",
        made_up_math,
    ),
    Pair(
        "hendrycks_math",
        tuple(SUBJECT_FILE.format("hendrycks_math", subject) for subject in SUBJECTS),
        "math",
        "lm-eval",
        {("exact_match", "none"): "hendrycks_math"},
        math_rows,
        made_up=made_up_math,
    ),
    Pair("mbpp", ("mbpp/mbpp.yaml",), "mbpp", "lm-eval", {("pass_at_1", "none"): "pass@1"}, mbpp_rows, made_up=made_up_mbpp),
)


# ---- the two programs


def harness_tasks(pair: Pair, rows: Sequence[Row], data: Path, folder: Path) -> list[Path]:
    """The harness's own task files, included in files that replace the data set by JSON lines of the same rows; named as the tasks."""
    groups = [list(some) for _, some in groupby(rows, key=lambda row: row["type"])] if len(pair.files) > 1 else [list(rows)]
    found = []
    for name, some in zip(pair.files, groups, strict=True):
        task = Path(name).stem.replace("-", "_")
        test = folder / f"{task}.jsonl"
        test.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        files = {"test": str(test), "train": str(data / pair.train) if pair.train else str(test)}
        replaced = {"task": task, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        found.append(folder / f"{task}.yaml")
        found[-1].write_text(yaml.safe_dump({"include": str(TASKS / name)} | replaced), encoding="utf-8")
    return found


def ask_harness(pair: Pair, tasks: Sequence[Path], model: LM, longest: int) -> list[Asked]:
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[str(task) for task in tasks],
        task_manager=TaskManager(include_defaults=False),
        gen_kwargs={"max_gen_toks": longest},
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        fewshot_random_seed=1234,
    )
    assert results is not None
    return [asked for task in tasks for asked in handled(pair, results["samples"][task.stem])]


def handled(pair: Pair, samples: list[Row]) -> list[Asked]:
    """Items in the data's order; the harness lists each once a filter."""
    found: dict[int, Asked] = {}
    for sample in samples:
        item = found.setdefault(sample["doc_id"], Asked(digest(sample["arguments"][0][0]), sample["resps"][0][0], {}))
        for (metric, name), ours in pair.metrics.items():
            if name == sample["filter"]:
                item.correct[ours] = bool(sample[metric])
    return [found[index] for index in sorted(found)]


def ask_soka(pair: Pair, rows: Sequence[Row], model: Path, data: Path, folder: Path, longest: int, batch_size: int) -> list[Asked]:
    """`soka eval --model base` on the same rows."""
    test = folder / "items.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {"task": pair.task, "protocol": pair.protocol, "path": str(test), "max_new_tokens": longest, "batch_size": batch_size}
    if protocol_named(pair.protocol, pair.task).needs_rows:
        entry["shots"] = {"path": str(data / str(pair.train))}
    recipe = {
        "model": {"name": str(model), "dtype": "float32"},
        "data": {"train": {"path": str(test), "task": pair.task}},
        "eval": [entry],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    context = StageContext(load_recipe(path), RunLayout(folder / "run"), device="cpu", offline=True)
    soka_eval(context, kinds=["base"])
    predictions = read_lines(context.layout.predictions(f"{pair.task}-{pair.protocol}", "base"))
    found = {row["id"]: Asked(row["prompt_sha256"], row["completion"], row["correct"]) for row in predictions}
    return [found[task_named(pair.task).example(row, index).id] for index, row in enumerate(rows)]


def judged_by_soka(pair: Pair, rows: Sequence[Row], completions: Sequence[str]) -> list[dict[str, bool]]:
    task, protocol = task_named(pair.task), protocol_named(pair.protocol, pair.task)
    answers = [(text, task.example(row, index)) for index, (text, row) in enumerate(zip(completions, rows, strict=True))]
    if hasattr(task, "judge_all"):  # programs, several at a time
        return [found.correct for found in task.judge_all(answers, protocol.stops, protocol.readings, protocol.postprocessing)]
    return [task.judge(text, example, protocol.stops, protocol.readings).correct for text, example in answers]


# ---- the table


@dataclass
class Count:
    """How many of how many are the same."""

    same: int = 0
    of: int = 0

    def add(self, same: bool) -> None:
        self.of += 1
        self.same += same

    def __str__(self) -> str:
        return f"{self.same} of {self.of}"


def compare(pair: Pair, model: Path, options: argparse.Namespace, folder: Path) -> list[str]:
    """The table's row of one task."""
    rows = pair.rows(options.data, options.limit)
    tasks = harness_tasks(pair, rows, options.data, folder)
    language_model = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=options.batch_size)
    theirs = ask_harness(pair, tasks, language_model, options.max_new_tokens)
    ours = ask_soka(pair, rows, model, options.data, folder, options.max_new_tokens, options.batch_size)
    prompts, completions, scores = Count(), Count(), Count()
    for one, other in zip(theirs, ours, strict=True):
        prompts.add(one.prompt_sha256 == other.prompt_sha256)
        completions.add(one.completion == other.completion)
        scores.add(all(one.correct[metric] == other.correct[metric] for metric in pair.metrics.values()))
        if one.completion != other.completion:
            print(f"{pair.harness}: {one.completion!r} against {other.completion!r}", file=sys.stderr)
    verdicts, right = made_up(pair, rows, tasks)
    return [
        pair.harness,
        f"{pair.task} `{pair.protocol}`",
        str(len(rows)),
        str(prompts),
        str(completions),
        str(scores),
        str(verdicts),
        str(right),
    ]


def made_up(pair: Pair, rows: Sequence[Row], tasks: Sequence[Path]) -> tuple[Count, Count]:
    """Verdicts that are the same, and those that are right by the harness, over completions made from gold answers."""
    verdicts, right = Count(), Count()
    kinds = [list(pair.made_up(rows, index)) for index in range(len(rows))]
    prompts = harness_prompts(tasks)
    for kind in range(len(kinds[0])):
        completions = [some[kind] for some in kinds]
        theirs = ask_harness(pair, tasks, Recorded(dict(zip(prompts, completions, strict=True))), 1)
        for one, correct, text in zip(theirs, judged_by_soka(pair, rows, completions), completions, strict=True):
            for metric in pair.metrics.values():
                verdicts.add(one.correct[metric] == correct[metric])
                right.add(one.correct[metric])
                if one.correct[metric] != correct[metric]:
                    print(f"{pair.harness} {metric}: the harness says {one.correct[metric]} of {text!r}", file=sys.stderr)
    return verdicts, right


def harness_prompts(tasks: Sequence[Path]) -> list[str]:
    """The prompts of the harness's tasks, in the data's order."""
    asked: list[str] = []

    class Listener(Recorded):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked.extend(request.args[0] for request in requests)
            return [""] * len(requests)

    results = lm_eval.simple_evaluate(
        model=Listener({}),
        tasks=[str(task) for task in tasks],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        log_samples=False,
        fewshot_random_seed=1234,
    )
    assert results is not None
    return asked


def roomy(model: Path, folder: Path) -> Path:
    """The model with positions for long prompts; rotary embeddings need no weights for them."""
    copy = folder / "model"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"max_position_embeddings": CONTEXT}
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=50, help="items a task")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=[pair.harness for pair in PAIRS])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = evaluate.load
    evaluate.load = lambda name, *rest, **named: CodeEval() if name == "code_eval" else load(name, *rest, **named)
    header = [
        "harness task",
        "soka task and protocol",
        "items",
        "same prompt",
        "same completion",
        "same scores",
        "same verdicts",
        "of them right",
    ]
    table = [header, ["---"] * len(header)]
    with tempfile.TemporaryDirectory() as folder:
        model = roomy(options.model, Path(folder))
        for pair in [pair for pair in PAIRS if pair.harness in options.tasks]:
            (room := Path(folder) / pair.harness).mkdir()
            table.append(compare(pair, model, options, room))
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
