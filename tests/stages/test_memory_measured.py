"""The plan's total against the peak that torch itself counts during a whole `soka train`."""

import json
from pathlib import Path

import pytest

from benchmarks.storages import PeakStorages
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.stages.context import StageContext
from tests.builders import shared_folder

# Merged matrices that a CPU keeps where its memory has room are no part of the plan (docs/speed.md).
SOKA = "{method: soka, target_modules: all-linear, rank: {rule: fixed, value: 2}, product: factored}"
LORA = "{method: lora, target_modules: [q_proj, v_proj], rank: {rule: fixed, value: 8}}"
PISSA = "{method: pissa, target_modules: all-linear, rank: {rule: fixed, value: 16}}"
FULL = "{method: full}"


def test_storages_are_counted_once_while_they_live() -> None:
    import torch

    with PeakStorages() as counted:
        first = torch.ones(1000)
        view = first.view(10, 100)[2:]
        second = view + 1
        del first, view, second
        third = torch.ones(10)
    assert (counted.peak, counted.present) == (4000 + 3200, 40)
    del third


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "adapter", "precision", "dtype", "micro", "length", "batch"),
    [
        ("llama288-math", SOKA, "fp32", "float32", 2, 128, 4),
        ("llama288-math", SOKA, "bf16", "bfloat16", 2, 128, 4),
        ("llama288-math", LORA, "bf16", "float32", 4, 256, 4),
        ("llama288-math", PISSA, "fp32", "float32", 1, 128, 2),
        ("llama288-math", FULL, "fp32", "float32", 2, 128, 2),
        ("llama288-math", FULL, "bf16", "float32", 2, 128, 4),
        ("stories260K", SOKA, "fp32", "float32", 4, 256, 8),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_the_planned_memory_is_within_15_percent_of_what_torch_counts(
    tmp_path: Path, model: str, adapter: str, precision: str, dtype: str, micro: int, length: int, batch: int, again: bool
) -> None:
    from soka_cli.stages.decompose import decompose
    from soka_cli.stages.plan import plan
    from soka_cli.stages.train import train

    rows = [{"p": "Count: ", "t": f"{row} pens and more of them " * length} for row in range(3 * batch)]  # longer than any row may be
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        f"model={{name: {shared_folder('models', model)}, dtype: {dtype}, revision: null}}",
        f"adapter={adapter}",
        f"data={{train: {{path: {data}, prompt: p, target: t, rows: null, revision: null}}, max_length: {length}, template: plain}}",
        f"train={{micro_batch_size: {micro}, batch_size: {batch}, steps: 3, epochs: null, precision: {precision}, "
        f"activation_checkpointing: {str(again).lower()}}}",
        "eval=null",
    ]
    context = StageContext(load_recipe("gsm8k", options), RunLayout(tmp_path / "run"), device="cpu", offline=True)
    planned = plan(context).figures["memory"]["to"]["total"]
    if context.recipe.adapter.method == "soka":
        decompose(context)
    with PeakStorages() as counted:
        train(context)
    assert planned == pytest.approx(counted.peak, rel=0.15)
