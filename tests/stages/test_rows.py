"""Through the real stage: the loss does not depend on how rows come, are grouped or are packed."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.train import train
from tests import builders


def uneven_rows(count: int) -> list[dict[str, str]]:
    """Rows of lengths that differ much, none near 256 tokens."""
    rows = builders.gsm8k_rows(count)
    for index, row in enumerate(rows):
        row["answer"] = "so " * (3 * (index % 8)) + row["answer"]
    return rows


def trained(folder: Path, run: str, model: Path, rows: Any, /, **sections: Any) -> Any:
    """The context of a finished training on `rows`, a file or what the recipe has under data.train."""
    made = builders.recipe_mapping(model, "unused", **sections)
    made["data"] = made["data"] | {"train": {"path": str(rows), "task": "gsm8k"} if isinstance(rows, Path) else rows}
    context = builders.stage_context(folder, made, run=run)
    train(context)
    return context


def curve(context: Any, *fields: str) -> list[list[float]]:
    rows = [json.loads(line) for line in context.layout.metrics.read_text().splitlines()]
    return [[row[field] for row in rows] for field in fields]


def weights(context: Any) -> dict[str, Any]:
    return dict(load_file(context.layout.adapter / "adapter_model.safetensors"))


def ledger(context: Any) -> dict[str, Any]:
    return dict(json.loads(context.layout.environment("train").read_text())["data"])


def require_same(contexts: list[Any], accuracy: float = 1e-6) -> None:
    """Loss, gradient norm and trained weights of each as of the first."""
    first = contexts[0]
    for other in contexts[1:]:
        for values, expected in zip(curve(other, "loss", "grad_norm", "tokens"), curve(first, "loss", "grad_norm", "tokens"), strict=True):
            assert values == pytest.approx(expected, abs=accuracy, rel=accuracy)
        for name, tensor in weights(first).items():
            assert float((weights(other)[name] - tensor).abs().max()) <= accuracy, name


# SGD-like steps would hide nothing; AdamW divides by the gradient's size, so tiny weights' rounding is kept out by lr 1e-3.
STEPS = {"steps": 3, "batch_size": 8, "lr": 1e-3}


def test_a_batch_of_eight_is_four_times_two_is_two_times_four_is_eight_times_one(tmp_path: Path, llama_folder: Path) -> None:
    data = builders.write_jsonl(tmp_path / "rows.jsonl", uneven_rows(20))
    sizes = (8, 4, 2, 1)
    require_same([trained(tmp_path, f"micro-{size}", llama_folder, data, train=STEPS | {"micro_batch_size": size}) for size in sizes])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_rows_learn_what_padded_rows_do(kind: str, tmp_path: Path) -> None:
    model = builders.tiny_model_folder(tmp_path / kind, kind)
    data = builders.write_jsonl(tmp_path / "rows.jsonl", uneven_rows(4))
    adapter = {"target_modules": ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]}
    if kind == "gpt2":  # its dropout would draw other numbers for another layout
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}))
    padded = trained(tmp_path, "padded", model, data, adapter=adapter, train=STEPS | {"batch_size": 4, "micro_batch_size": 2})
    whole = {"packing": True, "max_length": 1024}
    one = trained(tmp_path, "one", model, data, adapter=adapter, data=whole, train=STEPS | {"batch_size": 1, "micro_batch_size": 1})
    assert ledger(one)["packing"]["packs"] == 1
    require_same([padded, one])


def test_packs_of_other_lengths_side_by_side_learn_the_same(tmp_path: Path, llama_folder: Path) -> None:
    """All packs of a pass in one batch are all its rows, however they are grouped and padded."""
    data = builders.write_jsonl(tmp_path / "rows.jsonl", uneven_rows(9))
    contexts = [trained(tmp_path, "padded", llama_folder, data, train=STEPS | {"batch_size": 9, "micro_batch_size": 3})]
    for length in (300, 2048):
        packs = {300: 5, 2048: 1}[length]
        options = {"data": {"packing": True, "max_length": length}, "train": STEPS | {"batch_size": packs, "micro_batch_size": packs}}
        contexts.append(trained(tmp_path, f"packed-{length}", llama_folder, data, **options))
        assert ledger(contexts[-1])["packing"]["packs"] == packs
    require_same(contexts)


def test_a_packed_run_is_measured_as_a_padded_one(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    measured = []
    for packing in (False, True):
        data = {"packing": packing, "validation": {"fraction": 0.25}}
        context = trained(tmp_path, f"run-{packing}", llama_folder, gsm8k_file, data=data, train={"steps": 1})
        measured.append(curve(context, "eval_loss_before")[0][0])
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)


def test_each_pass_reads_every_row_once_and_epochs_are_counted(
    tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from soka_cli.data.batch import Collator

    read: list[int] = []
    collate = Collator.__call__
    monkeypatch.setattr(Collator, "__call__", lambda self, rows: read.extend(row["row"] for row in rows) or collate(self, rows))
    context = trained(
        tmp_path, "run", llama_folder, gsm8k_file, train={"steps": None, "epochs": 2, "batch_size": 10, "micro_batch_size": 5}
    )
    read = read[5:]  # before the first step the longest micro-batch is tried
    assert len(read) == 50 and sorted(read[:24]) == sorted(read[24:48]) == list(range(24)) and read[:24] != read[24:48]
    assert curve(context, "epoch")[0] == pytest.approx([10 / 24, 20 / 24, 30 / 24, 40 / 24, 50 / 24])


def chat_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Yes."},
            ]
        }
        for row in builders.gsm8k_rows(count)
    ]


def test_conversations_and_columns_are_mixed_by_weight(tmp_path: Path) -> None:
    model = builders.tiny_model_folder(tmp_path / "chat", chat=True)
    talks = builders.write_jsonl(tmp_path / "talks.jsonl", chat_rows(6))
    questions = builders.gsm8k_file(tmp_path, 12)
    sources = [
        {"path": str(talks), "messages": "messages", "weight": 2},
        {"path": str(questions), "prompt": "question", "target": "answer"},
    ]
    context = trained(tmp_path, "run", model, sources, data={"template": "chat"}, train={"steps": None, "epochs": 1})
    found = ledger(context)["train"]
    assert (found["read"], found["used"]) == (18, 18)
    assert [(source["path"], source["first_row"], source["used"]) for source in found["sources"]] == [
        (str(talks), 0, 6),
        (str(questions), 6, 12),
    ]
    assert found["supervised_tokens"] == sum(source["supervised_tokens"] for source in found["sources"])


def test_the_same_rows_in_any_file_form_train_alike(tmp_path: Path, llama_folder: Path) -> None:
    import csv

    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    rows = builders.gsm8k_rows(8)
    builders.write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    builders.write_jsonl(tmp_path / "folder" / "train.jsonl", rows)
    contexts = [
        trained(tmp_path, f"run-{name}", llama_folder, {"path": str(tmp_path / name), "prompt": "question", "target": "answer"})
        for name in ("rows.jsonl", "rows.json", "rows.parquet", "rows.csv", "saved", "folder")
    ]
    require_same(contexts, accuracy=0.0)


def test_the_ledger_names_what_was_filtered_dropped_and_cut(tmp_path: Path, llama_folder: Path) -> None:
    rows: list[dict[str, Any]] = [{**row, "kind": "sum"} for row in builders.gsm8k_rows(9)]
    rows[0]["kind"] = rows[4]["kind"] = "other"
    rows[1]["question"] = " "
    rows[2]["answer"] = ""
    rows[3]["question"] = "long " * 100
    rows[5]["answer"] = "so " * 100
    data = builders.write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"path": str(data), "prompt": "question", "target": "answer", "filter": {"kind": "sum"}}
    context = trained(tmp_path, "run", llama_folder, source)
    found = ledger(context)["train"]
    assert found["dropped_rows"] == {
        "the filter leaves it out": [0, 4],
        "the prompt is empty": [1],
        "the target is empty": [2],
        "the prompt fills max_length": [3],
    }
    assert (found["read"], found["used"], found["truncated"], found["truncated_rows"]) == (9, 4, 1, [5])
    assert found["read"] == found["used"] + sum(found["dropped"].values())
    assert any("lose their end-of-sequence token (row 5)" in warning for warning in context.reporter.warnings)
    assert not any("filter" in warning for warning in context.reporter.warnings)


def refusal(folder: Path, model: Path, rows: Any, /, **sections: Any) -> SokaError:
    with pytest.raises(SokaError) as failure:
        trained(folder, "run", model, rows, **sections)
    return failure.value


def test_a_source_in_which_nothing_is_left_to_learn_is_refused_by_name(tmp_path: Path, llama_folder: Path) -> None:
    good = builders.gsm8k_file(tmp_path, 4)
    lost = builders.write_jsonl(tmp_path / "lost.jsonl", [{"question": "x" * 300, "answer": "y"}] * 3)
    sources = [{"path": str(path), "prompt": "question", "target": "answer"} for path in (good, lost)]
    error = refusal(tmp_path, llama_folder, sources)
    assert error.exit_code is ExitCode.TRAINING
    assert "lost.jsonl, 3 rows" in error.where and "3 rows: the prompt fills max_length (rows 0, 1, 2)" in error.why


@pytest.mark.parametrize("file", ["train.jsonl", "trian.jsonl"])
def test_a_wrong_column_or_file_says_which_was_meant(file: str, tmp_path: Path, llama_folder: Path) -> None:
    builders.gsm8k_file(tmp_path, 4)
    error = refusal(tmp_path, llama_folder, {"path": str(tmp_path / file), "prompt": "questions", "target": "answer"})
    assert error.exit_code is ExitCode.DATA
    assert f"did you mean {'question for questions' if file == 'train.jsonl' else tmp_path / 'train.jsonl'}?" in error.hint


def test_a_wrong_split_says_which_was_meant(tmp_path: Path, llama_folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(builders.gsm8k_rows(4))}).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    builders.gsm8k_file(tmp_path / "folder", 4)
    for name in ("saved", "folder"):
        error = refusal(tmp_path, llama_folder, {"path": str(tmp_path / name), "task": "gsm8k", "split": "trian"})
        assert error.exit_code is ExitCode.DATA
        assert "did you mean split train?" in error.hint


def test_a_model_whose_packed_rows_would_leak_is_refused(tmp_path: Path, gsm8k_file: Path) -> None:
    model = builders.tiny_model_folder(tmp_path / "opt", "opt")
    error = refusal(tmp_path, model, gsm8k_file, data={"packing": True})
    assert error.exit_code is ExitCode.ENVIRONMENT and "data.packing" in error.where


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_real_rows_packed_give_a_real_model_the_loss_of_padded_ones(attention: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from soka_cli.data.batch import Collator, PackCollator
    from soka_cli.data.encode import encode_rows
    from soka_cli.data.load import load_rows
    from soka_cli.data.pack import pack
    from soka_cli.recipe.schema import SourceSection

    folder = builders.shared_folder("models", "stories260K")
    path = str(builders.shared_folder("data", "gsm8k", "train.jsonl"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    source = SourceSection(path=path, task="gsm8k")
    rows, _ = encode_rows(AutoTokenizer.from_pretrained(folder), load_rows(path, rows=12), source=source, template="plain", max_length=480)
    packs = [[rows[index] for index in found] for found in pack(range(len(rows)), [len(row["input_ids"]) for row in rows], 960)]
    assert 1 < len(packs) < len(rows)
    losses = []
    for batch in (Collator(0)(rows), PackCollator(0)(packs)):
        inputs = {name: values for name, values in batch.items() if name not in ("row", "tokens")}
        with torch.no_grad():
            losses.append(float(model(**inputs, use_cache=False).loss))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
