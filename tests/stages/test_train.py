"""What training does and leaves, for each method."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from soka_cli.data.batch import Collator
from soka_cli.data.encode import encode_rows
from soka_cli.data.load import load_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import SourceSection
from soka_cli.run.resources import disk_full
from soka_cli.run.write import bytes_under
from soka_cli.stages.plan import plan
from soka_cli.stages.train import train
from soka_cli.stages.trainer import RunTrainer
from tests import builders

METHODS = ["soka", "lora", "pissa", "full"]
FIELDS = ["step", "epoch", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "memory_bytes"]


def mapping(model: Path, data: Path, method: str = "soka", /, **sections: Any) -> dict[str, Any]:
    made = builders.recipe_mapping(model, data, **sections)
    made["adapter"] = {"method": "full"} if method == "full" else made["adapter"] | {"method": method}
    return made


def metrics(context: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in context.layout.metrics.read_text().splitlines()]


def loss_of(model: Any, data: Path) -> float:
    """Mean loss over all supervised tokens of a file, row by row: an own computation from logits."""
    rows, _ = encode_rows(
        builders.byte_tokenizer(),
        load_rows(str(data)),
        source=SourceSection(path=str(data), task="gsm8k"),
        template="plain",
        max_length=256,
    )
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            batch = Collator(0)([row])
            scores = torch.log_softmax(model(batch["input_ids"]).logits[0, :-1].double(), dim=-1)
            for position, label in enumerate(row["labels"][1:]):
                if label != -100:
                    total -= float(scores[position, label])
                    count += 1
    return total / count


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_result_has_the_reported_eval_loss_on_the_pristine_base(
    method: str, tmp_path: Path, llama_folder: Path, gsm8k_file: Path
) -> None:
    held_out = builders.gsm8k_file(tmp_path, 7, "held.jsonl")
    context = builders.stage_context(
        tmp_path, mapping(llama_folder, gsm8k_file, method) | {"data": data_with_validation(gsm8k_file, held_out)}
    )
    outcome = train(context)
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(context.layout.full_model)
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), context.layout.adapter)
    base = loss_of(AutoModelForCausalLM.from_pretrained(llama_folder), held_out)
    assert outcome.figures["last_eval_loss"] == pytest.approx(loss_of(model.eval(), held_out), abs=2e-6)
    assert outcome.figures["last_eval_loss"] < base - 1e-4
    assert outcome.figures["first_eval_loss"] == pytest.approx(base, abs=2e-6)


def data_with_validation(train_file: Path, held_out: Path) -> dict[str, Any]:
    return {
        "train": {"path": str(train_file), "task": "gsm8k"},
        "validation": {"path": str(held_out)},
        "template": "plain",
        "max_length": 256,
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_first_loss_is_the_bases_own(method: str, tmp_path: Path, llama_folder: Path) -> None:
    data = builders.gsm8k_file(tmp_path, 4)
    context = builders.stage_context(tmp_path, mapping(llama_folder, data, method, train={"steps": 1}))
    train(context)
    base = loss_of(AutoModelForCausalLM.from_pretrained(llama_folder), data)
    assert metrics(context)[0]["loss"] == pytest.approx(base, abs=2e-6)


def test_metrics_hold_the_contracts_fields_for_every_step(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    held_out = builders.gsm8k_file(tmp_path, 3, "held.jsonl")
    made = mapping(llama_folder, gsm8k_file, train={"steps": 5, "eval_every": 2}) | {"data": data_with_validation(gsm8k_file, held_out)}
    context = builders.stage_context(tmp_path, made)
    train(context)
    rows = metrics(context)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(list(row)[:8] == FIELDS for row in rows)
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 5]
    assert [row["tokens"] for row in rows] == sorted({row["tokens"] for row in rows})


def test_the_norm_is_read_before_clipping(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    norms = []
    for limit in (1e-6, 1e6):
        made = mapping(llama_folder, gsm8k_file, train={"steps": 1, "max_grad_norm": limit})
        context = builders.stage_context(tmp_path, made, run=f"clip-{limit}")
        train(context)
        norms.append(metrics(context)[0]["grad_norm"])
    assert norms[0] == norms[1] > 1e-6


def test_the_loss_is_per_supervised_token_whatever_the_micro_batch(tmp_path: Path, llama_folder: Path) -> None:
    rows = builders.gsm8k_rows(16)
    for index, row in enumerate(rows):
        row["answer"] = "so " * (5 * index) + row["answer"]  # lengths that differ much
    data = builders.write_jsonl(tmp_path / "uneven.jsonl", rows)
    curves = []
    for size in (1, 4):
        context = builders.stage_context(tmp_path, mapping(llama_folder, data, train={"micro_batch_size": size}), run=f"micro-{size}")
        train(context)
        curves.append([row["loss"] for row in metrics(context)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_factors_are_trained_in_fp32_over_a_bfloat16_base(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    made = mapping(llama_folder, gsm8k_file, model={"dtype": "bfloat16"}, train={"precision": "bf16", "lr": 1e-5})
    context = builders.stage_context(tmp_path, made)
    train(context)
    tensors = load_file(context.layout.adapter / "adapter_model.safetensors")
    trained, start = (next(tensors[name] for name in sorted(tensors) if f"{part}U" in name) for part in ("soka_", "soka_start_"))
    assert trained.dtype == torch.float32
    moved = (trained - start).abs()
    assert 0 < float(moved.max()) < 1e-4  # a step of 1e-5 is lost in bf16 beside entries of 0.1
    assert float((moved > 0).float().mean()) > 0.9


def test_sigma_has_its_own_rate(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file, train={"sigma_lr": 1e-12}))
    train(context)
    tensors = load_file(context.layout.adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "soka_sigma" in name or "soka_U" in name:
            moved = float((tensor - tensors[name.replace("soka_", "soka_start_")]).abs().max())
            assert moved < 1e-7 if "soka_sigma" in name else moved > 1e-3


def test_the_adapter_names_the_base_as_the_recipe_does(
    tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soka_cli.models.snapshot.locate", lambda name: llama_folder)
    for method in ("soka", "pissa"):
        context = builders.stage_context(tmp_path, mapping(Path("someone/tiny"), gsm8k_file, method), run=method)
        train(context)
        config = json.loads((context.layout.adapter / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "someone/tiny"
        for path in context.layout.train.rglob("*"):
            if path.is_file():
                assert str(llama_folder).encode() not in path.read_bytes(), path


def test_pissa_counts_what_it_trains_and_saves_twice_the_rank(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file, "pissa"))
    outcome = train(context)
    tensors = load_file(context.layout.adapter / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 2 * outcome.figures["trainable_parameters"]


def test_checkpoints_hold_no_frozen_weight_and_no_pickled_arguments(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file))
    train(context)
    folder = context.layout.checkpoints / "checkpoint-4"
    assert not (folder / "training_args.bin").exists()
    assert [path.name for path in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert all("soka_" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_a_finished_training_is_not_repeated(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file))
    first = train(context)
    before = (context.layout.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    second = train(context)
    assert (second.status, second.figures) == ("already done", first.figures)
    assert (context.layout.adapter / "adapter_model.safetensors").stat().st_mtime_ns == before
    context.layout.environment("train").write_text("{}")
    with pytest.raises(SokaError) as failure:
        train(context)
    assert failure.value.exit_code is ExitCode.RUN and "train.json" in failure.value.where


def test_another_rate_is_refused_and_force_keeps_the_decomposition(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    train(builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file)))
    changed = mapping(llama_folder, gsm8k_file, train={"lr": 2e-2})
    with pytest.raises(SokaError) as refusal:
        train(builders.stage_context(tmp_path, changed))
    assert refusal.value.exit_code is ExitCode.RUN and "train.lr: 0.01 -> 0.02" in refusal.value.why
    context = builders.stage_context(tmp_path, changed, force=True)
    factors = context.layout.factors.stat().st_mtime_ns
    assert train(context).status == "done"
    assert context.layout.factors.stat().st_mtime_ns == factors
    assert list(context.layout.set_aside.glob("train-*/adapter"))


def test_divergence_stops_before_the_step_and_names_it(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    made = mapping(llama_folder, gsm8k_file, train={"lr": 1e30, "warmup": 0.0, "save_every": 1, "steps": 8})
    context = builders.stage_context(tmp_path, made)
    with pytest.raises(SokaError) as failure:
        train(context)
    error = failure.value
    steps = [row["step"] for row in metrics(context)]
    assert error.exit_code is ExitCode.TRAINING
    assert f"step {steps[-1] + 1} (not taken)" in error.where and "data rows" in error.where
    assert f"checkpoint-{steps[-1]}" in error.why
    assert not context.layout.adapter.exists()


def test_rows_without_room_for_an_answer_are_nothing_to_learn(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    with pytest.raises(SokaError) as failure:
        train(builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file, data={"max_length": 8})))
    assert failure.value.exit_code is ExitCode.TRAINING
    assert "fills max_length" in failure.value.why


def test_a_missing_file_is_found_before_anything_is_computed(tmp_path: Path, llama_folder: Path) -> None:
    context = builders.stage_context(tmp_path, mapping(llama_folder, tmp_path / "absent.jsonl"))
    with pytest.raises(SokaError) as failure:
        train(context)
    assert failure.value.exit_code is ExitCode.DATA
    assert not context.layout.decompose.exists()


def test_the_ledger_accounts_for_every_row(tmp_path: Path, llama_folder: Path) -> None:
    rows = builders.gsm8k_rows(10)
    rows[3]["question"] = "long " * 100
    rows[5]["answer"] = "so " * 80 + rows[5]["answer"]
    data = builders.write_jsonl(tmp_path / "rows.jsonl", rows)
    context = builders.stage_context(tmp_path, mapping(llama_folder, data))
    train(context)
    ledger = json.loads(context.layout.environment("train").read_text())["data"]["train"]
    assert (ledger["read"], ledger["used"], ledger["truncated"]) == (10, 9, 1)
    assert sum(ledger["dropped"].values()) == 1
    assert any("1 of 10 rows are cut at 256" in warning for warning in context.reporter.warnings)


def test_held_out_rows_depend_on_the_seed_and_are_not_trained_on(tmp_path: Path, llama_folder: Path, gsm8k_file: Path) -> None:
    made = mapping(llama_folder, gsm8k_file, train={"steps": 1}, data={"validation": {"fraction": 0.25}})
    losses = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        context = builders.stage_context(tmp_path, made | {"seed": seed}, run=run)
        train(context)
        ledgers = json.loads(context.layout.environment("train").read_text())["data"]
        assert (ledgers["train"]["read"], ledgers["validation"]["read"]) == (18, 6)
        losses.append(metrics(context)[-1]["eval_loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("failure", "where"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "training_step"), (OSError(28, "full"), "_save")],
)
def test_exhausted_memory_or_disk_ends_with_what_to_change(
    failure: Exception, where: str, tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(RunTrainer, where, fail)
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file))
    with pytest.raises(SokaError) as error:
        train(context)
    assert error.value.exit_code is ExitCode.RESOURCES and error.value.hint
    assert not list(context.layout.checkpoints.glob("*"))


def test_too_little_room_is_refused_before_the_first_step(
    tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soka_cli.run.resources.free_bytes", lambda path: 1000)
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file, "lora"))
    with pytest.raises(SokaError) as error:
        train(context)
    assert error.value.exit_code is ExitCode.RESOURCES and "1000 bytes are free" in error.value.what
    assert not context.layout.metrics.exists()


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("method", METHODS)
def test_before_the_first_step_there_has_to_be_the_room_that_the_plan_says(
    method: str, keep: str, tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = {"data": {"validation": {"fraction": 0.2}}} if keep == "best" else {}
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file, method, train={"keep": keep}, **validation))
    planned = plan(context).figures["disk"]
    asked: list[int] = []

    def refused(path: Path, needed: int) -> None:
        asked.append(needed)
        raise disk_full(path, needed)

    monkeypatch.setattr("soka_cli.stages.train.require_space", refused)
    with pytest.raises(SokaError):
        train(context)
    assert asked == [planned["checkpoints"] + planned["adapter"]]


def test_a_disk_with_just_that_room_takes_a_run_and_its_resumption(
    tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints that lie there already are not asked for again. They are large here beside what else lies in their folders."""
    adapter = {"rank": {"rule": "fixed", "value": 512}}
    made = mapping(llama_folder, gsm8k_file, "lora", train={"save_every": 1, "keep_checkpoints": 2})
    made["adapter"] |= adapter
    context = builders.stage_context(tmp_path, made)
    planned = plan(context).figures["disk"]
    room = planned["checkpoints"] + planned["adapter"]
    checkpoints = context.layout.checkpoints
    monkeypatch.setattr("soka_cli.run.resources.free_bytes", lambda path: room - 1)
    with pytest.raises(SokaError, match=f"needs {room} bytes"):
        train(context)
    monkeypatch.setattr("soka_cli.run.resources.free_bytes", lambda path: room - bytes_under(checkpoints))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        save, saves = RunTrainer._save_checkpoint, iter((False, False, True))
        patch.setattr(RunTrainer, "_save_checkpoint", lambda *words: save(*words) or interrupt(next(saves)))
        train(context)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert train(context).status == "done"


def interrupt(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_an_engine_that_would_train_wrongly_is_refused_before_anything_is_computed(
    name: str, tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "true")
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file))
    with pytest.raises(SokaError) as refusal:
        train(context)
    assert refusal.value.exit_code is ExitCode.ENVIRONMENT and "fsdp2" in refusal.value.hint
    assert not context.layout.root.exists()


def test_deepspeed_is_refused_before_a_step_however_it_came(
    tmp_path: Path, llama_folder: Path, gsm8k_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RunTrainer.__init__

    def with_deepspeed(self: RunTrainer, **options: Any) -> None:
        made(self, **options)
        monkeypatch.setattr(type(self.accelerator), "distributed_type", DistributedType.DEEPSPEED)

    monkeypatch.setattr(RunTrainer, "__init__", with_deepspeed)
    monkeypatch.setattr(RunTrainer, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
    context = builders.stage_context(tmp_path, mapping(llama_folder, gsm8k_file, "lora"))
    with pytest.raises(SokaError, match="does not train by DEEPSPEED") as refusal:
        train(context)
    assert refusal.value.exit_code is ExitCode.ENVIRONMENT
