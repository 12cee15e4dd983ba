"""Write configs/protocols/harness anew from an installed lm-evaluation-harness: prompts' texts and lists that are its own.

python -m benchmarks.harness_data --math PATH/math/train.jsonl     (needs the extra parity, in an environment of its own)

Of minerva_math's four shots only digests and line breaks are written: their texts are MATH's, which no package may carry.
"""

import argparse
import ast
import json
import re
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "protocols" / "harness"
HOPE = "\nFinal Answer: The final answer is "


def harness() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None, "install the extra parity first"
    return Path(spec.origin).parent


def function_values(path: Path, name: str) -> Any:
    """What a function of literals in the harness's task module returns, or a list of literals that it holds; nothing is run."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.literal_eval(next(inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"{path} has no {name}")


def write_lines(name: str, rows: list[dict[str, Any]]) -> None:
    (FOLDER / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def layout(text: str) -> dict[str, Any]:
    """A text as the digest of its words and the white space that is no single space, by the number of the word before it."""
    breaks = {str(index): gap for index, gap in enumerate(re.findall(r"\s+", text)) if gap != " "}
    return {"words_sha256": sha256(" ".join(text.split()).encode()).hexdigest(), "breaks": breaks}


def minerva_shots(train: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    words = {" ".join(row["problem"].split()): row for row in rows}
    shots = []
    for sample in function_values(harness() / "tasks" / "minerva_math" / "utils.py", "list_fewshot_samples"):
        solution, phrase, _ = sample["solution"].partition(HOPE)
        row = words[" ".join(sample["problem"].split())]
        assert phrase and row["solution"].split() == solution.split()
        shots.append({"problem": layout(sample["problem"]), "solution": layout(solution)})
    return shots


def minerva_patterns(path: Path) -> list[list[str]]:
    """Pattern and replacement of each re.sub that normalize_final_answer makes of literals."""
    function = next(
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if getattr(node, "name", "") == "normalize_final_answer"
    )
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "sub"]
    literal = [call for call in calls if all(isinstance(argument, ast.Constant) for argument in call.args[:2])]
    return [[str(ast.literal_eval(argument)) for argument in call.args[:2]] for call in sorted(literal, key=lambda call: call.lineno)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--math", type=Path, required=True, help="MATH's training rows, JSON lines")
    train = parser.parse_args().math
    tasks = harness() / "tasks"
    minerva = tasks / "minerva_math" / "utils.py"
    samples = yaml.safe_load((tasks / "gsm8k" / "gsm8k-cot.yaml").read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    write_lines("gsm8k_cot.jsonl", [{"question": one["question"], "answer": one["target"]} for one in samples])
    shots = function_values(tasks / "mbpp" / "utils.py", "list_fewshot_samples")
    write_lines("mbpp.jsonl", [{name: one[name] for name in ("task_id", "text", "code", "test_list")} for one in shots])
    (FOLDER / "minerva_math.json").write_text(json.dumps(minerva_shots(train), indent=1) + "\n", encoding="utf-8")
    lists = {
        "removed": function_values(minerva, "REMOVED_EXPRESSIONS"),
        "replaced": function_values(minerva, "SUBSTITUTIONS"),
        "patterns": minerva_patterns(minerva),
    }
    (FOLDER / "minerva_normalisation.json").write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
