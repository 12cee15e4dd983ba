"""train: rows, base and start -> train/adapter (or train/model), through transformers' Trainer."""

import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer

from soka_cli.adapter import attach_factors
from soka_cli.adapter.fold import unfold_start
from soka_cli.adapter.methods import LORA_B, SIGMA, attach, peft_config
from soka_cli.adapter.pissa import adapter_factors, attach_initial, save_converted
from soka_cli.adapter.products import keep_matrices, plans_used
from soka_cli.data.batch import Collator, PackCollator
from soka_cli.data.curriculum import Curriculum
from soka_cli.data.encode import EncodedRow
from soka_cli.data.load import SourceRows
from soka_cli.data.order import ReadingOrder
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.apart import require_apart
from soka_cli.models.base import load_base, load_tokenizer, pick_device
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.offload import adapting, is_offloaded, whereabouts
from soka_cli.models.quantised import is_packed, prepare_training, require_bitsandbytes, require_fit
from soka_cli.models.snapshot import snapshot
from soka_cli.recipe.resolved import to_mapping, to_yaml
from soka_cli.recipe.schema import UNPACKED_METHODS, TrainSection
from soka_cli.run.interrupt import interrupts_wait
from soka_cli.run.lines import AppendFile
from soka_cli.run.reporter import ProgressTask, SilentReporter
from soka_cli.run.resources import available_memory, is_memory_full, require_space
from soka_cli.run.stage import open_stage
from soka_cli.run.write import atomic_folder, bytes_under, damaged, read_json
from soka_cli.stages.checkpoints import LENGTH, Checkpoints, origin_of
from soka_cli.stages.context import StageContext
from soka_cli.stages.course import best_step, stopped_early
from soka_cli.stages.decompose import decompose, decompose_inputs
from soka_cli.stages.decontamination import left_out
from soka_cli.stages.effort import room_of
from soka_cli.stages.folded_start import FoldedStart
from soka_cli.stages.launch import ECHO, Worker
from soka_cli.stages.matching import settled
from soka_cli.stages.memory import moments_of
from soka_cli.stages.metrics import EarlyStop, MetricsWriter, StepFlow, cut_back
from soka_cli.stages.outcome import Outcome, Table
from soka_cli.stages.rows import EncodedRows, data_inputs, encode, read_rows, reading_order, validation_source
from soka_cli.stages.sharded import is_sharded, whole_state
from soka_cli.stages.shortage import data_worker_ended, longest_items, out_of_memory, tokens_of
from soka_cli.stages.sizes import kept_beside
from soka_cli.stages.steps import items_read, steps_in_all
from soka_cli.stages.symptoms import Watch
from soka_cli.stages.team import Team
from soka_cli.stages.trackers import Mirrors, require_trackers
from soka_cli.stages.trainer import LongestFirst, RunTrainer
from soka_cli.stages.warm_start import adapter_digest, warm_start

STAGE = "train"
INITIAL_FACTORS = "initial_factors.safetensors"  # in a PiSSA checkpoint: what its base had subtracted
NO_INPUTS = {
    "micro_batch_size",
    "save_every",
    "keep_checkpoints",
    "eval_every",
    "log_every",
    "log_module_norms",
    "activation_checkpointing",
    "strategy",
    "compile",
    "data_workers",
    "trackers",
}
"""Options of speed and of what is told: they change no result. With keep: best or early_stopping, eval_every does."""
SHARE_FOR_MATRICES = 4  # a quarter of the memory that is free may hold merged matrices from pass to pass
SHOWN = ("method", "steps", "tokens", "first_loss", "last_loss", "first_eval_loss", "last_eval_loss", "trainable_parameters", "seconds")
UNTAUGHT = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
"""Engines of Accelerate's that step, shard and save in ways of their own, by what its launcher sets."""
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw-8bit": "adamw_bnb_8bit"}


def train(context: StageContext) -> Outcome:
    """Train by the recipe; goes on where an interrupted or shorter run stopped.

    Raises:
        SokaError: exit 4 for data, 5 for a stale or damaged run directory, 6 for memory or disk, 7 where training diverges or
            nothing can be learnt.
    """
    _refuse_untaught_engines()
    worker = Worker.here()
    _require_whole_batches(context.recipe.train, worker.count)
    worker.require_alone(context.recipe.model)
    require_trackers(context.recipe.train.trackers)
    _require_optimizer(context.recipe.train.optimizer)
    if (kind := context.recipe.model.quantization) != "none":
        require_bitsandbytes(kind)  # before a decomposition that may take hours
    inputs = train_inputs(context)
    if context.recipe.adapter.method == "soka":
        _ensure_factors(context)
    if worker.rank == 0:
        return _led(context, inputs, worker)
    if worker.may_begin(STAGE):
        _Training(context, worker, inputs).fit()
    return Outcome(STAGE, "partial", context.layout.root)


def _led(context: StageContext, inputs: dict[str, Any], worker: Worker) -> Outcome:
    """The stage in the process that owns the run directory."""
    with (
        worker.leads(STAGE) as go,
        open_stage(
            context.layout,
            STAGE,
            inputs,
            recipe_yaml=to_yaml(context.recipe),
            source_text=context.loaded.source_text,
            reporter=context.reporter,
            command=context.command,
            force=context.force,
            folders=[context.layout.train],
            extends=extends,
        ) as stage,
    ):
        if stage.done:
            return _outcome(context, _figures_of(context.layout.environment(STAGE)), "already done")
        go()
        run = _Training(context, worker, inputs)
        figures = run.fit() | {"seconds": stage.seconds}
        stage.finish(
            [context.layout.metrics, run.result],
            {"device": str(run.device), "processes": worker.count, "data": run.ledgers, "training": figures},
        )
    return _outcome(context, figures, "done")


def _figures_of(path: Path) -> dict[str, Any]:
    """The figures of a finished training; exit 5 where the file lacks them."""
    kept = read_json(path)
    figures = kept.get("training") if isinstance(kept, dict) else None
    if not isinstance(figures, dict) or not figures.keys() >= set(SHOWN):
        raise damaged(path, "it lacks the figures of the training", "repeat with --force to train again")
    return figures


def train_inputs(context: StageContext) -> dict[str, Any]:
    """What the result depends on."""
    section = context.recipe.model
    checkpoint = Checkpoint(snapshot(section.name, revision=section.revision, offline=context.offline))
    recipe = to_mapping(context.recipe)
    return {
        **decompose_inputs(context, checkpoint.digest),
        "adapter": adapter_inputs(context, recipe["adapter"]),
        "data": data_inputs(context.recipe),
        "train": training_inputs(context, recipe["train"]),
    }


def adapter_inputs(context: StageContext, adapter: dict[str, Any]) -> dict[str, Any]:
    """The adapter section's part of them. A folded start changes no result in fp32; in bf16 it rounds the weights, and counts."""
    counts = context.recipe.adapter.fold_start and context.recipe.train.precision == "bf16"
    return {name: value for name, value in adapter.items() if name != "product" and (name != "fold_start" or counts)}


def training_inputs(context: StageContext, train: dict[str, Any]) -> dict[str, Any]:
    """The train section's part of them; an adapter to begin with counts by its digest."""
    section = context.recipe.train
    read = NO_INPUTS - ({"eval_every"} if section.keep == "best" or section.early_stopping is not None else set())
    inputs = {name: value for name, value in train.items() if name not in read}
    return inputs if section.init_from is None else inputs | {"init_from": adapter_digest(Path(section.init_from))}


def extends(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether only the length differs, and it grew: more steps, or more epochs."""

    def split(inputs: dict[str, Any]) -> tuple[dict[str, Any], int | None, float]:
        rest = {**inputs, "train": {key: value for key, value in inputs["train"].items() if key not in LENGTH}}
        return rest, inputs["train"].get("steps"), inputs["train"].get("epochs") or 1.0

    (old_rest, old_steps, old_epochs), (new_rest, new_steps, new_epochs) = split(old), split(new)
    if old_rest != new_rest or (old_steps is None) != (new_steps is None):
        return False
    return new_steps > old_steps if old_steps is not None and new_steps is not None else new_epochs > old_epochs


def _refuse_untaught_engines() -> None:
    """Exit 3 where a launcher asks for an engine that would not give a correct run.

    DeepSpeed's backward pass takes the step itself, so the trial of the longest micro-batch would train and a loss that is not
    finite would be stepped on; and its shards are not gathered into checkpoint and adapter here.
    """
    for name, engine in UNTAUGHT.items():
        if os.environ.get(name, "").lower() == "true":
            raise _untaught(engine, f"{name}, which the launcher set")


def _untaught(engine: str, where: str) -> SokaError:
    return SokaError(
        f"soka does not train by {engine}.",
        where=where,
        why="its checkpoints would not be those of an adapter, and a step that diverges would be taken",
        hint="train.strategy=fsdp2 shares a model out as well: soka train --num-processes N, or configs/accelerate/fsdp2.yaml",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _require_whole_batches(train: TrainSection, processes: int) -> None:
    """Refuse (exit 2) where a step's rows can't be shared out in whole micro-batches."""
    together = processes * train.micro_batch_size
    if train.batch_size % together:
        below, above = train.batch_size // together * together, -(-train.batch_size // together) * together
        raise SokaError(
            f"{processes} processes can't share {train.batch_size} rows a step in micro-batches of {train.micro_batch_size}.",
            where="train.batch_size",
            why=f"it has to be a multiple of {processes} x {train.micro_batch_size} = {together}",
            hint=f"train.batch_size={below or above} or {above}, or a smaller train.micro_batch_size",
            exit_code=ExitCode.USAGE,
        )


def _require_optimizer(name: str) -> None:
    if name == "adamw-8bit" and find_spec("bitsandbytes") is None:
        raise SokaError(
            "The package of optimizer adamw-8bit is not installed.",
            where="train.optimizer",
            hint="pip install 'soka-cli[quant]', or train.optimizer=adamw",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _ensure_factors(context: StageContext) -> None:
    """Decompose first where that is missing. --force is train's: an intact decomposition of the same inputs stays."""
    if not context.layout.factors.exists():
        context.reporter.say("There are no factors yet: decompose runs first.")
    try:
        decompose(replace(context, force=False))
    except SokaError as error:
        if not context.force or error.exit_code is not ExitCode.RUN:
            raise
        decompose(context)


@dataclass
class _Rows:
    """Encoded rows to learn from, the order in which that is done, and those to be measured on."""

    training: list[EncodedRow]
    order: ReadingOrder
    validation: list[EncodedRow]


class _Metrics(NamedTuple):
    """The rows of metrics.jsonl so far, and what adds one."""

    rows: list[dict[str, Any]]
    append: Callable[[dict[str, Any]], None]


class _Training:
    """One fit: everything between the open stage and its result folder."""

    def __init__(self, context: StageContext, worker: Worker, inputs: dict[str, Any]) -> None:
        self.context = context if worker.rank == 0 else replace(context, reporter=SilentReporter())
        self.recipe = context.recipe
        self.layout = context.layout
        self.whole = self.recipe.adapter.method == "full"
        self.result = self.layout.full_model if self.whole else self.layout.adapter
        self.checkpoints = Checkpoints(self.layout.checkpoints, self.recipe.train.keep_checkpoints, origin_of(inputs))
        self.device = torch.device(worker.device(pick_device(context.device)))
        self.team = Team.assembled(worker, self.device)
        self.ledgers: dict[str, Any] = {}
        self.initial: dict[str, Tensor] | None = None
        self.kept_step: int | None = None  # of keep: best
        self.folded_start: FoldedStart | None = None
        with_rank, self.match = settled(context)
        self.adapter = with_rank.recipe.adapter

    def fit(self) -> dict[str, Any]:
        """Load, train, write the result; returns the stage's figures."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers by a name of yesterday
            warnings.filterwarnings("ignore", message="PiSSA changes the base weights")  # save_converted undoes that
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # PEFT then sets it right for Conv1D
            return self._fitted()

    def _fitted(self) -> dict[str, Any]:
        self.tokenizer = load_tokenizer(self.recipe.model, offline=self.context.offline)
        rows = self._rows()
        steps = steps_in_all(self.recipe, rows.order)
        found = self.team.told(self.checkpoints.newest_intact(self.context.reporter) if self.team.leads else None)
        if self.match is not None:
            self.context.reporter.say(self.match.sentence)
        model = self._model(found[1] if found else None)
        if self.recipe.data.packing:
            require_apart(model)
        sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        trainable = sum(sizes)
        if self.team.leads:
            self._require_space(sizes)
        whole = self.recipe.train.strategy != "fsdp2"  # else the weights are shared out, to have no copy of any
        matrices_kept = keep_matrices(model, (available_memory() or 0) // (SHARE_FOR_MATRICES * self.team.count)) if whole else 0
        try:
            metrics = self._train(model, rows, steps, found)
        except Exception as error:
            if isinstance(error, SokaError):
                raise
            if ended := data_worker_ended(error):
                raise ended from error
            if not is_memory_full(error):
                raise
            raise self._out_of_memory(error, rows) from error
        vectors = self.recipe.train.micro_batch_size * self.recipe.data.max_length
        products = plans_used(model, vectors, autocast=self.recipe.train.precision == "bf16")
        unfold_start(model)
        self._save(model)
        stopped = stopped_early(metrics, self.recipe.train.early_stopping)
        evaluated = [row["eval_loss"] for row in metrics if "eval_loss" in row]
        return {
            "method": self.recipe.adapter.method,
            "match": None if self.match is None else asdict(self.match),
            "steps": metrics[-1]["step"],
            "stopped_early": stopped is not None,
            "kept_step": self.kept_step or metrics[-1]["step"],
            "tokens": metrics[-1]["tokens"],
            "first_loss": metrics[0]["loss"],
            "last_loss": metrics[-1]["loss"],
            "first_eval_loss": metrics[0].get("eval_loss_before"),
            "last_eval_loss": evaluated[-1] if evaluated else None,
            "trainable_parameters": trainable,
            "products": products,
            "matrices_kept_bytes": matrices_kept,
            "folded_start": None if self.folded_start is None else self.folded_start.figures,
            "rows": len(rows.training),
        }

    # ---- data

    def _rows(self) -> _Rows:
        training, held_out = read_rows(self.context)
        if self.recipe.data.decontaminate == "drop":
            self.ledgers["decontaminated"] = left_out(training, held_out if validation_source(self.recipe.data) else [])
        encoded = self._encode(training, "train")
        order = reading_order(self.recipe, encoded.rows, encoded.counts)
        if order.packed:
            self.ledgers["packing"] = order.packing()
        return _Rows(encoded.rows, order, self._encode(held_out, "validation").rows if held_out else [])

    def _encode(self, parts: list[SourceRows], name: str) -> EncodedRows:
        encoded = encode(self.context, self.tokenizer, parts, name)
        self.ledgers[name] = encoded.to_mapping()
        return encoded

    # ---- model

    def _model(self, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
        """The base with what is trained on it, in fp32 over the base's own type."""
        section = self.recipe.model
        model = load_base(section, device=str(self.device), offline=self.context.offline)
        model.name_or_path = model.config._name_or_path = section.name  # PEFT writes it into the adapter: the recipe's, not this machine's
        if is_offloaded(model):
            self.context.reporter.say(whereabouts(model))
        if is_packed(model):
            self._refuse_packed()
            model = prepare_training(model, torch.float32 if self.recipe.train.precision == "fp32" else torch.bfloat16)
        elif self.whole or self.recipe.train.precision == "fp32":
            model = model.float()
        set_seed(self.recipe.seed)
        if self.whole:
            return model.requires_grad_(True)
        config = peft_config(self.adapter, seed=self.recipe.seed)
        config.revision = section.revision
        if self.adapter.method == "pissa":
            return self._pissa(model, config, checkpoint)
        if self.adapter.method == "soka":
            attached = attach_factors(model, config, self.layout.factors)
        else:
            with adapting(model):
                attached = attach(model, config, foreign=self.adapter.method == "peft")
            if is_packed(model):
                require_fit(attached, self.adapter.method, self.device)
        if self.recipe.train.init_from is not None:
            warm_start(attached, Path(self.recipe.train.init_from))
        return attached

    def _refuse_packed(self) -> None:
        """Exit 2 for a method that needs the weights themselves, where the folder holds them packed."""
        if why := UNPACKED_METHODS.get(self.recipe.adapter.method):
            raise SokaError(
                f"Method {self.recipe.adapter.method} cannot be trained on this base: its weights are packed.",
                where=f"model.name: {self.recipe.model.name}",
                why=f"the method {why}",
                hint="name the float model that was packed (model.name=FOLDER), or take adapter.method=lora or soka",
                exit_code=ExitCode.USAGE,
            )

    def _pissa(self, model: PreTrainedModel, config: Any, checkpoint: Path | None) -> PeftModel:
        if checkpoint is None:
            attached = get_peft_model(model, config)
            self.initial = adapter_factors(attached)
            return attached
        self.initial = load_file(checkpoint / INITIAL_FACTORS)
        return attach_initial(model, config, self.initial)

    def _require_space(self, sizes: Sequence[int]) -> None:
        """Room for what the plan says that training of tensors of these sizes writes, less the checkpoints that lie there already."""
        trainable = sum(sizes)
        kept = kept_beside(self.recipe.adapter.method, trainable)
        model = trainable  # counts where the base is trained, and saved, whole
        room = room_of(self.recipe, trained=trainable, kept=kept, model=model, held=moments_of(self.recipe.train.optimizer, sizes))
        there = min(bytes_under(self.layout.checkpoints), room.checkpoints)
        require_space(self.layout.root, room.training - there)

    # ---- training

    def _train(self, model: PreTrainedModel | PeftModel, rows: _Rows, steps: int, found: tuple[int, Path] | None) -> list[dict[str, Any]]:
        """Run the Trainer from `found` (step and checkpoint) or from the start; returns the rows of metrics.jsonl."""
        start = found[0] if found else 0
        reporter = self.context.reporter
        with (
            self._metrics(start) as metrics,
            interrupts_wait(ECHO.total_seconds() if self.team.count > 1 else 0.0) as pending,
            reporter.task(f"train {self.recipe.adapter.method}", total=steps, unit="steps") as progress,
        ):
            stopped = stopped_early(metrics.rows, self.recipe.train.early_stopping)
            if found and stopped is not None:
                reporter.say(f"Stopped early at step {stopped}: more steps change nothing while train.early_stopping holds.")
            elif found:
                reporter.say(f"Going on from {found[1].name} of {steps} steps.")
            keep_best = self.recipe.train.keep == "best"
            trainer = RunTrainer(
                model=model,
                args=self._arguments(steps, bool(rows.validation)),
                train_dataset=Curriculum(rows.training, rows.order, items_read(self.recipe, rows.order)),
                eval_dataset=self._held_out(rows) or None,
                data_collator=self._collator(),
                callbacks=[StepFlow(pending, metrics.rows, self.team, keep_best=keep_best)],
                longest=longest_items(rows.training, rows.order, self.recipe.train.micro_batch_size),
                team=self.team,
                checkpoints=self.checkpoints,
                apart={SIGMA: self.recipe.train.sigma_lr, LORA_B: self.recipe.train.lora_b_lr},
                keep=lambda: best_step(metrics.rows) if keep_best else None,
                module_norms=self.recipe.train.log_module_norms,
                save_more=self._save_initial if self.initial is not None else None,
            )
            self._require_sharding(trainer)
            use_cache = model.config.use_cache
            if found and trainer.is_fsdp_enabled:
                trainer._load_from_checkpoint(str(found[1]))
            if found and (start >= steps or stopped is not None):  # it ended between the last checkpoint and the result
                trainer._load_from_checkpoint(str(found[1]))
            else:
                self._fit(trainer, metrics, progress, rows, found[1] if found else None)
            model.config.use_cache = use_cache
            if pending:
                self._say_stopped(trainer.state.global_step, steps)
                pending.deliver()
            if keep_best:
                self._take_best(trainer, metrics.rows)
            return metrics.rows

    def _require_sharding(self, trainer: RunTrainer) -> None:
        """Refuse where FSDP2 was asked for, by the recipe or the launcher, and would not happen, or what it does not do."""
        if trainer.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise _untaught(trainer.accelerator.distributed_type.value, "Accelerate's distributed_type")
        by_recipe = self.recipe.train.strategy == "fsdp2" and self.team.count > 1
        if not by_recipe and os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
            return
        found = trainer.accelerator.distributed_type
        if found is not DistributedType.FSDP:
            raise SokaError(
                f"FSDP2 was asked for, and Accelerate would train by {found.value} instead.",
                where="train.strategy: fsdp2" if by_recipe else "ACCELERATE_USE_FSDP, which the launcher set",
                why="it shares a model out among several GPUs alone",
                hint="train.strategy=ddp, or more than one GPU and --num-processes",
                exit_code=ExitCode.ENVIRONMENT,
            )
        if self.initial is not None or self.recipe.train.keep == "best":
            option = "adapter.method: pissa" if self.initial is not None else "train.keep: best"
            raise SokaError(
                f"{option} does not work with a model that is shared out among processes (FSDP2).",
                where=option,
                hint="train.strategy=ddp, or another choice of that option",
                exit_code=ExitCode.USAGE,
            )

    @contextmanager
    def _metrics(self, start: int) -> Iterator["_Metrics"]:
        """metrics.jsonl, cut back to step `start`; in the other processes a copy of its rows, since they decide by them as well."""
        if not self.team.leads:
            rows: list[dict[str, Any]] = self.team.told([])
            yield _Metrics(rows, rows.append)
            return
        reporter = self.context.reporter
        with AppendFile(self.layout.metrics) as file:
            if file.cut:
                reporter.warn(file.cut)
            if dropped := cut_back(file, start):
                reporter.say(f"metrics.jsonl: {dropped} rows after step {start} are taken back; these steps are trained again.")
            self.team.told(file.rows)
            yield _Metrics(file.rows, file.append)

    def _collator(self) -> Collator | PackCollator:
        pad_id = self.tokenizer.pad_token_id
        return PackCollator(pad_id) if self.recipe.data.packing else Collator(pad_id)

    def _held_out(self, rows: _Rows) -> list[Any]:
        """As the collator takes them: under packing each is a pack of its own."""
        return [[row] for row in rows.validation] if self.recipe.data.packing else rows.validation

    def _passes(self, rows: _Rows) -> Callable[[int], float]:
        """Steps -> passes over the rows."""
        return lambda step: rows.order.passes(step * self.recipe.train.batch_size)

    def _fit(self, trainer: RunTrainer, metrics: "_Metrics", progress: ProgressTask, rows: _Rows, checkpoint: Path | None) -> None:
        """The steps, with all who watch them."""
        train = self.recipe.train
        mirrors = Mirrors(
            train.trackers if self.team.leads else [],
            run=self.layout.root.name,
            folder=self.layout.trackers,
            rows=metrics.rows,
            offline=self.context.offline,
            reporter=self.context.reporter,
        )
        watch = Watch(metrics.rows, self.adapter, self.context.reporter)

        def written(row: dict[str, Any]) -> None:
            mirrors.log(row)
            watch.look()

        held_out_loss = trainer.held_out_loss if rows.validation else None
        norms = trainer.module_norms if train.log_module_norms else None
        if self.adapter.method == "soka" and self.adapter.fold_start:
            self.folded_start = FoldedStart(trainer.model, self.context.reporter)
            trainer.add_callback(self.folded_start)
        trainer.add_callback(LongestFirst(trainer))
        trainer.add_callback(MetricsWriter(metrics.append, progress, self._passes(rows), held_out_loss, norms, written))
        trainer.add_callback(EarlyStop(metrics.rows, train.early_stopping))
        if train.compile == "layers":
            compile_layers(trainer.model)
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            mirrors.close()
        if (step := stopped_early(metrics.rows, train.early_stopping)) is not None:
            self.context.reporter.say(f"Stopped early at step {step}: eval_loss no longer falls (train.early_stopping).")

    def _take_best(self, trainer: RunTrainer, rows: list[dict[str, Any]]) -> None:
        """Put back the state of the lowest eval_loss, of those whose checkpoints are intact."""
        there = {step for step in self.checkpoints.steps() if self.checkpoints.fault(step) is None}
        best = best_step(rows)
        taken = best_step([row for row in rows if row["step"] in there])
        if taken is None:
            return
        if taken != best:
            self.context.reporter.warn(
                f"The checkpoint of the best step {best} is damaged or gone; step {taken} is the best of the others."
            )
        self.kept_step = taken
        trainer._load_from_checkpoint(str(self.checkpoints.path(taken)))

    def _out_of_memory(self, error: BaseException, rows: _Rows) -> SokaError:
        longest = tokens_of(longest_items(rows.training, rows.order, 1)[0])
        begun = bool(self.checkpoints.steps()) or self.layout.metrics.stat().st_size > 0
        where = "a training step; the last checkpoint stays" if begun else "the trial of the longest micro-batch, before step 1"
        return out_of_memory(self.recipe.train, error, device=self.device, longest=longest, where=where)

    def _arguments(self, steps: int, validated: bool) -> TrainingArguments:
        train = self.recipe.train
        if train.precision == "bf16" and self.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise SokaError(
                f"{torch.cuda.get_device_name(self.device)} does not compute in bfloat16.",
                where="train.precision: bf16",
                hint="set train.precision=fp32",
                exit_code=ExitCode.ENVIRONMENT,
            )
        sharing = train.strategy == "fsdp2" and self.team.count > 1
        arguments = TrainingArguments(
            output_dir=str(self.layout.checkpoints),
            max_steps=steps,
            per_device_train_batch_size=train.micro_batch_size,
            per_device_eval_batch_size=train.micro_batch_size,
            gradient_accumulation_steps=train.batch_size // (train.micro_batch_size * self.team.count),
            fsdp=True if sharing else None,
            fsdp_config={"version": 2, "reshard_after_forward": True} if sharing else None,
            ddp_broadcast_buffers=False,  # theta0 is the same in all of them
            ddp_find_unused_parameters=False,
            learning_rate=train.lr,
            optim=OPTIMIZERS[train.optimizer],
            lr_scheduler_type="constant_with_warmup" if train.schedule == "constant" else train.schedule,
            lr_scheduler_kwargs=schedule_settings(train),
            warmup_steps=train.warmup,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            bf16=train.precision == "bf16",
            activation_checkpointing=train.activation_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if train.activation_checkpointing else None,
            seed=self.recipe.seed,
            logging_steps=train.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if validated else "no",
            eval_steps=train.eval_every if validated else None,
            save_strategy="steps",
            save_steps=train.save_every,
            train_sampling_strategy="sequential",
            include_num_input_tokens_seen="non_padding",
            remove_unused_columns=False,
            dataloader_pin_memory=self.device.type == "cuda",
            dataloader_num_workers=train.data_workers,
            dataloader_multiprocessing_context="fork" if train.data_workers else None,  # the rows are shared, never copied
            use_cpu=self.device.type == "cpu",
            disable_tqdm=True,
            report_to=[],
        )
        if self.team.count == 1:
            _pin(arguments, self.device)
        return arguments

    def _say_stopped(self, step: int, steps: int) -> None:
        command = self.context.command or f"soka train --run {shlex.quote(str(self.layout.root))}"
        self.context.reporter.warn(f"Stopped at step {step} of {steps}; checkpoint-{step} is written. Go on with: {command}")

    def _save_initial(self, folder: Path) -> None:
        assert self.initial is not None
        save_file(self.initial, folder / INITIAL_FACTORS)

    # ---- result

    def _save(self, model: PreTrainedModel | PeftModel) -> None:
        state = whole_state(model) if is_sharded(model) else None
        if self.team.leads:
            with atomic_folder(self.result) as folder:
                self._save_into(folder, model, state)
        self.team.wait()

    def _save_into(self, folder: Path, model: PreTrainedModel | PeftModel, state: dict[str, Tensor] | None) -> None:
        if self.whole:
            kind = getattr(torch, self.recipe.model.dtype)
            if state is None:
                model = model.to(kind)
            else:
                state = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
            model.save_pretrained(folder, state_dict=state)
            self.tokenizer.save_pretrained(folder)
        elif self.initial is not None:
            save_converted(model, self.initial, folder)
        else:
            model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)


def schedule_settings(train: TrainSection) -> dict[str, Any]:
    """The schedule's own settings, whole numbers as such."""
    return {name: int(value) if value == int(value) else value for name, value in train.schedule_config.items()}


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each block by itself, in place: names stay, and blocks that are alike share their code."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def _pin(arguments: TrainingArguments, device: torch.device) -> None:
    """Hold the Trainer to one device: with several GPUs in sight it would wrap the model in DataParallel on its own account."""
    if arguments.device.type != "cuda":
        return
    chosen = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(chosen)
    arguments.__dict__["_setup_devices"] = chosen  # the cached property behind `arguments.device`
    arguments._n_gpu = 1


def _outcome(context: StageContext, figures: dict[str, Any], status: Any) -> Outcome:
    run = shlex.quote(str(context.layout.root))
    return Outcome(
        stage=STAGE,
        status=status,
        run=context.layout.root,
        figures=figures,
        tables=(Table("Training", SHOWN, (tuple(figures[name] for name in SHOWN),)),),
        next_commands=(f"soka eval --run {run}", f"soka merge --run {run}"),
    )
