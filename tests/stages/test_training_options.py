"""The options of training: each does what it says, and leaves alone what it does not name."""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.storages import PeakStorages
from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.train import train
from soka_cli.stages.trainer import RunTrainer
from tests import builders

RANK = {"rule": "fixed", "value": 2}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def context_of(folder: Path, model: Path, /, run: str = "run", adapter: dict[str, Any] | None = None, **options: Any) -> Any:
    """A context whose `options` are those of the train section."""
    mapping = builders.recipe_mapping(model, builders.gsm8k_file(folder), train=options)
    if adapter is not None:
        mapping["adapter"] = {"target_modules": ["q_proj", "v_proj"], "rank": RANK} | adapter
    if {"keep", "early_stopping"} & options.keys() or "eval_every" in options:
        mapping["data"]["validation"] = {"fraction": 0.2}
    return builders.stage_context(folder, mapping, run=run)


def rows_of(context: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in context.layout.metrics.read_text().splitlines()]


def adapter_bytes(context: Any) -> bytes:
    return bytes(context.layout.adapter_weights.read_bytes())


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    original = RunTrainer.training_step

    def deadly(self: RunTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return original(self, *arguments, **options)

    patch.setattr(RunTrainer, "training_step", deadly)


def held(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside nested mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from held(inner)


# ---- optimizer and schedule


def test_the_8_bit_optimizer_holds_moments_in_bytes_and_resumes_bit_equal(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"optimizer": "adamw-8bit", "adapter": {"method": "lora", "rank": {"rule": "fixed", "value": 128}}}
    undisturbed = context_of(tmp_path, llama_folder, "undisturbed", **options)
    train(undisturbed)
    state = torch.load(undisturbed.layout.checkpoints / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert torch.uint8 in {part.dtype for part in held(state) if part.numel() >= 4096}
    context = context_of(tmp_path, llama_folder, **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    train(context)
    assert adapter_bytes(context) == adapter_bytes(undisturbed)


def test_an_optimizer_without_its_package_is_refused_at_the_start(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soka_cli.stages.train.find_spec", lambda name: None)
    context = context_of(tmp_path, llama_folder, optimizer="adamw-8bit")
    with pytest.raises(SokaError) as caught:
        train(context)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT and "soka-cli[quant]" in caught.value.hint
    assert not context.layout.root.exists()


@pytest.mark.parametrize(
    ("schedule", "config", "last"),
    [
        ("linear", {}, 1 / 8),
        ("constant", {}, 1.0),
        ("cosine_with_min_lr", {"min_lr_rate": 0.5}, None),
        ("polynomial", {"power": 1, "lr_end": 1e-3}, None),
        ("warmup_stable_decay", {"num_decay_steps": 4}, None),
        ("cosine_with_restarts", {"num_cycles": 2}, None),
        ("inverse_sqrt", {}, None),
    ],
)
def test_a_schedule_of_transformers_is_followed_by_its_name(
    schedule: str, config: dict[str, float], last: float | None, tmp_path: Path, llama_folder: Path
) -> None:
    options = {"steps": 8, "warmup": 0, "schedule": schedule, "schedule_config": config, "save_every": 8}
    context = context_of(tmp_path, llama_folder, adapter={"method": "lora"}, **options)
    train(context)
    rates = [row["lr"] / 1e-2 for row in rows_of(context)]
    assert rates[0] == pytest.approx(1.0, rel=0.1) or schedule == "inverse_sqrt"
    if last is not None:
        assert rates[-1] == pytest.approx(last)
    if "min_lr_rate" in config:
        assert min(rates) >= 0.5
    if "num_decay_steps" in config:
        assert rates[:5] == [1.0] * 5 > rates[5:]
    if "num_cycles" in config:
        assert any(after > before for before, after in pairwise(rates))


def test_b_has_its_own_rate_under_lora_plus(tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder, adapter={"method": "lora"}, lora_b_lr=1e-12)
    train(context)
    tensors = load_file(context.layout.adapter_weights)
    assert all(float(tensor.abs().max()) < 1e-9 for name, tensor in tensors.items() if "lora_B" in name)
    faster = context_of(tmp_path, llama_folder, "faster", adapter={"method": "lora"}, lora_b_lr=1e-1)
    train(faster)
    assert any(float(tensor.abs().max()) > 1e-2 for name, tensor in load_file(faster.layout.adapter_weights).items() if "lora_B" in name)


def test_a_clipping_of_zero_clips_nothing(tmp_path: Path, llama_folder: Path) -> None:
    weights = []
    for limit in (0, 1e9, 1e-3):
        context = context_of(tmp_path, llama_folder, f"clip-{limit}", max_grad_norm=limit)
        train(context)
        assert rows_of(context)[0]["grad_norm"] > 1e-3
        weights.append(adapter_bytes(context))
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("clip", [0, 1e-3])
@pytest.mark.parametrize("method", ["soka", "lora"])
def test_the_modules_norms_make_up_the_whole_norm_before_clipping(method: str, clip: float, tmp_path: Path, llama_folder: Path) -> None:
    context = context_of(tmp_path, llama_folder, adapter={"method": method}, log_module_norms=True, max_grad_norm=clip, steps=2)
    train(context)
    for row in rows_of(context):
        norms = row["module_grad_norms"]
        assert sorted(norms) == sorted(f"model.layers.{layer}.self_attn.{kind}" for layer in (0, 1) for kind in ("q_proj", "v_proj"))
        assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-5)


def test_activation_checkpointing_changes_no_bit(tmp_path: Path, llama_folder: Path) -> None:
    curves, weights = [], []
    for switch in (False, True):
        context = context_of(tmp_path, llama_folder, f"run-{switch}", activation_checkpointing=switch)
        train(context)
        curves.append([(row["loss"], row["grad_norm"]) for row in rows_of(context)])
        weights.append(adapter_bytes(context))
    assert curves[0] == curves[1] and weights[0] == weights[1]


def test_activation_checkpointing_computes_the_blocks_twice(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    counts, original = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: counts.append(1) or original(self, x))
    for switch in (False, True):
        train(context_of(tmp_path, llama_folder, f"run-{switch}", activation_checkpointing=switch, steps=1))
        counts.append(0)
    plain = counts.index(0)
    assert len(counts) - 2 - plain == 2 * plain


def test_compile_layers_compiles_each_block_and_keeps_names(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    plain, context = context_of(tmp_path, llama_folder, "plain"), context_of(tmp_path, llama_folder, compile="layers")
    train(plain)
    train(context)
    assert compiled == ["LlamaDecoderLayer"] * 2
    assert load_file(context.layout.adapter_weights).keys() == load_file(plain.layout.adapter_weights).keys()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_environment_records_how_each_type_of_layer_computes(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """A compiled layer counts no passes; what it takes is told all the same."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: original(self, backend="eager"))
    torch._dynamo.reset()
    context = context_of(tmp_path, llama_folder, adapter={"product": "merged"}, compile="layers" if compiled else "none", steps=1)
    train(context)
    products = json.loads(context.layout.environment("train").read_text())["training"]["products"]
    assert [(one["type"], one["layers"], one["plan"]) for one in products] == [("q_proj", 2, "merged"), ("v_proj", 2, "merged")]
    assert all(one["vectors"] == 2 * 256 and one["order"] in ("V first", "U first") for one in products)
    assert all(set(one["passes"]) == (set() if compiled else {"merged"}) for one in products)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler for CPUs")
def test_compiled_layers_compute_what_plain_ones_do(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own inductor; nothing stands in for it here."""
    from torch._inductor import compile_fx as inductor
    from torch._inductor import config

    compiled: list[str] = []
    original = inductor.compile_fx
    monkeypatch.setattr(inductor, "compile_fx", lambda graph, *words, **named: compiled.append("") or original(graph, *words, **named))
    monkeypatch.setattr(config, "compile_threads", 1)  # in this process
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = context_of(tmp_path, llama_folder, "plain", steps=1)
    context = context_of(tmp_path, llama_folder, "compiled", steps=1, compile="layers")
    train(plain)
    assert not compiled
    train(context)
    assert compiled
    for name in ("loss", "grad_norm"):
        assert rows_of(context)[0][name] == pytest.approx(rows_of(plain)[0][name], abs=1e-5)
    tensors = load_file(plain.layout.adapter_weights)
    assert tensors.keys() == load_file(context.layout.adapter_weights).keys()
    for name, tensor in load_file(context.layout.adapter_weights).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=1e-5)


def test_speed_and_telling_are_no_inputs(tmp_path: Path, llama_folder: Path) -> None:
    train(context_of(tmp_path, llama_folder))
    changed = context_of(tmp_path, llama_folder, log_module_norms=True, activation_checkpointing=True, compile="layers", log_every=2)
    assert train(changed).status == "already done"


# ---- the longest batch first, and what to do where it does not fit


def test_trying_the_longest_batch_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = builders.tiny_model_folder(tmp_path / "gpt2", "gpt2")  # has dropout
    adapter = {"method": "lora", "target_modules": ["c_attn"], "rank": RANK}
    tried = context_of(tmp_path, model, "tried", adapter)
    tokens: list[int] = []
    original = RunTrainer.training_step

    def counted(self: RunTrainer, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        tokens.append(int(inputs["attention_mask"].sum(1).min()))
        return original(self, model, inputs, num_items_in_batch)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", counted)
        train(tried)
    assert tokens[0] == max(tokens)
    untried = context_of(tmp_path, model, "untried", adapter)
    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "try_longest", lambda self: None)
        train(untried)
    assert adapter_bytes(tried) == adapter_bytes(untried)
    assert [row["loss"] for row in rows_of(tried)] == [row["loss"] for row in rows_of(untried)]


def test_the_trial_holds_as_much_as_a_later_step(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that is large beside the activations, so that moments and accumulated gradients show."""
    peaks: list[int] = []
    original = RunTrainer.try_longest
    options = {"adapter": {"method": "lora", "rank": {"rule": "fixed", "value": 1024}}, "save_every": 100, "steps": 2}
    context = context_of(tmp_path, llama_folder, **options)
    with monkeypatch.context() as patch, PeakStorages() as counted:
        patch.setattr(RunTrainer, "try_longest", lambda self: original(self) or peaks.append(counted.peak))
        train(context)
    assert peaks[0] >= 0.95 * counted.peak


def test_a_resumed_trial_holds_the_moments_that_are_there_once(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[int] = []
    original = RunTrainer._room_of_later_steps

    def counted(self: RunTrainer) -> list[torch.Tensor]:
        room = original(self)
        rooms.append(sum(tensor.nbytes for tensor in room))
        return room

    monkeypatch.setattr(RunTrainer, "_room_of_later_steps", counted)
    context = context_of(tmp_path, llama_folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(context)
    train(context)
    state = torch.load(context.layout.checkpoints / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert rooms == [sum(part.nbytes for part in held(state) if part.numel() > 1 or part.ndim), 0]


# ---- processes that make batches ahead


def test_data_workers_change_no_bit_and_are_no_input(tmp_path: Path) -> None:
    model = builders.tiny_model_folder(tmp_path / "gpt2", "gpt2")  # has dropout
    adapter = {"method": "lora", "target_modules": ["c_attn"], "rank": RANK}
    alone, helped = (context_of(tmp_path, model, f"run-{count}", adapter, data_workers=count) for count in (0, 2))
    for context in (alone, helped):
        train(context)
    assert adapter_bytes(alone) == adapter_bytes(helped)
    assert [row["loss"] for row in rows_of(alone)] == [row["loss"] for row in rows_of(helped)]
    assert train(context_of(tmp_path, model, "run-0", adapter, data_workers=2)).status == "already done"


def test_batches_are_made_by_as_many_processes_as_the_recipe_says(tmp_path: Path, llama_folder: Path) -> None:
    children: set[int] = set()

    class Watching(SilentReporter):
        def task(self, title: str, total: float | None = None, unit: str = "") -> Any:
            children.update(child.pid or 0 for child in multiprocessing.active_children())
            return super().task(title, total, unit)

    seen: list[int] = []
    original = RunTrainer.training_step

    def counting(self: RunTrainer, *arguments: Any, **options: Any) -> Any:
        seen.append(len({child.pid for child in multiprocessing.active_children()} - children))
        return original(self, *arguments, **options)

    context = context_of(tmp_path, llama_folder, data_workers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", counting)
        train(replace(context, reporter=Watching()))
    assert seen[0] == 0 and max(seen) == 2  # the trial asks nobody


def test_a_data_worker_that_is_killed_says_what_to_change(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")

    monkeypatch.setattr(RunTrainer, "training_step", killed)
    with pytest.raises(SokaError, match="makes batches was ended") as caught:
        train(context_of(tmp_path, llama_folder, data_workers=1))
    assert caught.value.exit_code is ExitCode.RESOURCES and "train.data_workers=0" in caught.value.hint


@pytest.mark.parametrize(("step", "where"), [(0, "before step 1"), (2, "a training step")])
def test_memory_that_runs_out_names_what_to_change_and_by_how_much(
    step: int, where: str, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RunTrainer.training_step

    def greedy(self: RunTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, *arguments, **options)

    monkeypatch.setattr(RunTrainer, "training_step", greedy)
    context = context_of(tmp_path, llama_folder, micro_batch_size=4)
    with pytest.raises(SokaError) as caught:
        train(context)
    error = caught.value
    assert error.exit_code is ExitCode.RESOURCES and where in error.where and "2.00 GiB" in error.why
    longest = max(len(json.dumps(row)) for row in builders.gsm8k_rows())
    assert "4 rows of up to" in error.what and longest
    for remedy in ("train.micro_batch_size=2 takes 50%", "train.activation_checkpointing=true", "data.max_length="):
        assert remedy in error.hint


def test_too_little_room_for_the_next_checkpoint_keeps_the_last(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path, llama_folder)
    monkeypatch.setattr(
        "soka_cli.run.resources.free_bytes", lambda path: 100 if (context.layout.checkpoints / "checkpoint-2").exists() else 10**12
    )
    with pytest.raises(SokaError) as caught:
        train(context)
    assert caught.value.exit_code is ExitCode.RESOURCES
    assert "checkpoint-4 needs" in caught.value.what and "100 bytes are free" in caught.value.what
    assert [path.name for path in context.layout.checkpoints.iterdir()] == ["checkpoint-2"]


# ---- the best state, and stopping early


def losing(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the held-out loss of the start, and then after each step, be these."""
    monkeypatch.setattr(RunTrainer, "held_out_loss", lambda self: losses[self.state.global_step])


def test_the_best_state_becomes_the_adapter_however_old_it_is(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, [9, 5, 3, 4, 5, 6, 7])
    options = {"steps": 6, "eval_every": 1, "save_every": 6, "keep_checkpoints": 1}
    context = context_of(tmp_path, llama_folder, keep="best", **options)
    outcome = train(context)
    assert outcome.figures["kept_step"] == 2
    assert sorted(path.name for path in context.layout.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-6"]
    kept = load_file(context.layout.checkpoints / "checkpoint-2" / "adapter_model.safetensors")
    found = load_file(context.layout.adapter_weights)
    assert found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)
    last = context_of(tmp_path, llama_folder, "last", **options)
    train(last)
    assert adapter_bytes(last) != adapter_bytes(context)


def test_a_killed_run_keeps_the_same_best(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, [9, 5, 3, 4, 5, 6, 7])
    options = {"steps": 6, "eval_every": 1, "save_every": 1, "keep_checkpoints": 1, "keep": "best"}
    undisturbed, context = context_of(tmp_path, llama_folder, "undisturbed", **options), context_of(tmp_path, llama_folder, **options)
    train(undisturbed)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        train(context)
    assert train(context).figures["kept_step"] == 2
    assert adapter_bytes(context) == adapter_bytes(undisturbed)


def test_a_run_ends_when_the_loss_no_longer_falls_and_stays_ended(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, [9, 5, 4, 4, 4.5, 3, 2])
    options = {"steps": 6, "eval_every": 1, "save_every": 6, "early_stopping": {"patience": 2}}
    context = context_of(tmp_path, llama_folder, **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("soka_cli.stages.train._Training._save", lambda self, model: (_ for _ in ()).throw(Killed()))
        train(context)
    assert [row["step"] for row in rows_of(context)] == [1, 2, 3, 4]
    outcome = train(context)
    assert (outcome.figures["steps"], outcome.figures["stopped_early"]) == (4, True)
    assert train(context_of(tmp_path, llama_folder, **options)).status == "already done"


def test_more_steps_for_a_run_that_stopped_early_train_nothing_and_say_so(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, [9, 5, 4, 4, 4.5, 3, 2])
    options = {"schedule": "constant", "eval_every": 1, "save_every": 6, "early_stopping": {"patience": 2}}
    train(context_of(tmp_path, llama_folder, steps=6, **options))
    context = context_of(tmp_path, llama_folder, steps=10, **options)
    outcome = train(context)
    assert (outcome.figures["steps"], outcome.figures["stopped_early"]) == (4, True)
    assert "Stopped early at step 4: more steps change nothing while train.early_stopping holds." in context.reporter.messages
    assert not any(message.startswith("Going on") for message in context.reporter.messages)


def test_how_often_it_is_evaluated_is_an_input_where_that_decides(tmp_path: Path, llama_folder: Path) -> None:
    train(context_of(tmp_path, llama_folder, keep="best", eval_every=2))
    with pytest.raises(SokaError) as caught:
        train(context_of(tmp_path, llama_folder, keep="best", eval_every=1))
    assert "train.eval_every: 2 -> 1" in caught.value.why


# ---- beginning with an adapter


@pytest.mark.parametrize("method", ["soka", "dora"])
def test_a_warm_start_begins_where_the_other_run_ended(method: str, tmp_path: Path, llama_folder: Path) -> None:
    first = context_of(tmp_path, llama_folder, "first", {"method": method}, eval_every=4)
    ended = train(first).figures["last_eval_loss"]
    second = context_of(tmp_path, llama_folder, "second", {"method": method}, eval_every=4, init_from=str(first.layout.adapter))
    figures = train(second).figures
    assert figures["first_eval_loss"] == pytest.approx(ended, abs=1e-6)
    assert figures["last_eval_loss"] < ended


def test_an_adapter_of_another_form_is_refused_with_all_differences(tmp_path: Path, llama_folder: Path) -> None:
    first = context_of(tmp_path, llama_folder, "first", {"method": "lora", "alpha": 4})
    train(first)
    folder = str(first.layout.adapter)
    larger = context_of(tmp_path, llama_folder, "second", {"method": "lora", "rank": {"rule": "fixed", "value": 3}}, init_from=folder)
    with pytest.raises(SokaError) as caught:
        train(larger)
    assert caught.value.exit_code is ExitCode.USAGE and caught.value.where == "train.init_from"
    assert "lora_alpha: 4" in caught.value.why and "(2, 32), and the recipe's is (3, 32)" in caught.value.why
    with pytest.raises(SokaError) as other:
        train(context_of(tmp_path, llama_folder, "third", {"method": "dora"}, init_from=folder))
    assert "use_dora: False" in other.value.why
    with pytest.raises(SokaError) as absent:
        train(context_of(tmp_path, llama_folder, "fourth", {"method": "lora"}, init_from=str(tmp_path)))
    assert "adapter_config.json" in absent.value.why


def test_the_adapter_that_training_began_with_is_an_input_by_its_content(tmp_path: Path, llama_folder: Path) -> None:
    first = context_of(tmp_path, llama_folder, "first", {"method": "lora"})
    train(first)
    moved = tmp_path / "moved"
    options = {"adapter": {"method": "lora"}, "steps": 1}
    train(context_of(tmp_path, llama_folder, "second", init_from=str(first.layout.adapter), **options))
    first.layout.adapter.rename(moved)
    assert train(context_of(tmp_path, llama_folder, "second", init_from=str(moved), **options)).status == "already done"
    weights = bytearray((moved / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(SokaError) as caught:
        train(context_of(tmp_path, llama_folder, "second", init_from=str(moved), **options))
    assert "init_from" in caught.value.why
