"""metrics.jsonl: what each training step did, written as it happens."""

import math
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from soka_cli.recipe.schema import EarlyStoppingSection
from soka_cli.run.interrupt import PendingInterrupt
from soka_cli.run.lines import AppendFile
from soka_cli.run.reporter import ProgressTask
from soka_cli.run.write import damaged
from soka_cli.stages.course import stopped_early
from soka_cli.stages.team import Team


def peak_memory_bytes(device: torch.device) -> int:
    """The device's peak allocation so far, on the CPU the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cut_back(file: AppendFile, step: int) -> int:
    """Drop the rows behind `step`, which will be trained again; returns how many.

    Raises:
        SokaError: exit 5 where the row of `step` itself is missing: it was written before the checkpoint of that step was.
    """
    steps = [row.get("step") for row in file.rows]
    if step and step not in steps:
        raise damaged(file.path, f"it has no row for step {step}, whose checkpoint is there", "restore it from a copy, or use --force")
    kept = steps.index(step) + 1 if step else 0
    dropped = len(file.rows) - kept
    if dropped:
        file.keep_first(kept)
    return dropped


class StepFlow(TrainerCallback):
    """Decides what happens at a step's end: a line wherever something is saved or evaluated, a stop where the user asked for one.

    Args:
        pending: a signal to end; one that reaches any of the team ends all after the same step.
        rows: those of metrics.jsonl, which grow.
        keep_best: save where eval_loss is lower than ever.
    """

    def __init__(self, pending: PendingInterrupt, rows: list[dict[str, Any]], team: Team, *, keep_best: bool = False) -> None:
        self.pending = pending
        self.team = team
        self.rows = rows
        self.keep_best = keep_best

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A resumed state carries the intervals of its time; this run's hold."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        self.pending.learn(next(filter(None, self.team.gathered(self.pending.number)), None))
        if self.pending:
            control.should_save = control.should_training_stop = True
        if last:
            control.should_save = True
            control.should_evaluate = args.do_eval
        if control.should_save or control.should_evaluate:
            control.should_log = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if self.keep_best and metrics and all(metrics["eval_loss"] < row["eval_loss"] for row in self.rows if "eval_loss" in row):
            control.should_save = True


class EarlyStop(TrainerCallback):
    """Ends the run, with a checkpoint, where eval_loss no longer falls. Runs after MetricsWriter."""

    def __init__(self, rows: list[dict[str, Any]], rule: EarlyStoppingSection | None) -> None:
        self.rows = rows
        self.rule = rule

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if stopped_early(self.rows, self.rule) is not None:
            control.should_save = control.should_training_stop = True


class MetricsWriter(TrainerCallback):
    """Writes a row for each logged step and moves the progress bar. Runs after StepFlow.

    A step with an evaluation is written when eval_loss is known, and always before that step's checkpoint is. The first row
    also has `eval_loss_before`, the held-out loss of the untrained start.

    Args:
        append: keeps a row.
        passes: the passes over the rows that so many steps are.
        held_out_loss: measures the held-out loss; None where there are no held-out rows.
        module_norms: gives each module's gradient norm in the last step, where they are asked for.
        written: is told each row that is on the disk.
    """

    def __init__(
        self,
        append: Callable[[dict[str, Any]], None],
        progress: ProgressTask,
        passes: Callable[[int], float],
        held_out_loss: Callable[[], float] | None = None,
        module_norms: Callable[[], dict[str, float]] | None = None,
        written: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.append = append
        self.progress = progress
        self.passes = passes
        self.held_out_loss = held_out_loss
        self.module_norms = module_norms
        self.written = written
        self.before: dict[str, float] = {}
        self.row: dict[str, Any] | None = None
        self.seconds = 0.0  # inside training steps since the last row, so without evaluations and checkpoints
        self.tokens = 0
        self.begun = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.tokens = state.num_input_tokens_seen
        if state.global_step:
            self.progress.already(state.global_step)
        elif self.held_out_loss is not None:
            self.before = {"eval_loss_before": self.held_out_loss()}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begun = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seconds += time.monotonic() - self.begun
        if not control.should_log:
            self.progress.advance(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        tokens = state.num_input_tokens_seen
        speed = (tokens - self.tokens) / self.seconds if self.seconds > 0 else 0.0
        self.row = {
            "step": state.global_step,
            "epoch": self.passes(state.global_step),
            "tokens": tokens,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "tokens_per_s": round(speed, 1),
            "memory_bytes": peak_memory_bytes(args.device),
            **({} if self.module_norms is None else {"module_grad_norms": self.module_norms()}),
            **self.before,
        }
        self.before = {}
        self.tokens, self.seconds = tokens, 0.0
        self.progress.advance(1, loss=self.row["loss"], grad_norm=self.row["grad_norm"], tokens_per_s=self.row["tokens_per_s"])
        if not control.should_evaluate:
            self._write()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if self.row is not None and metrics and math.isfinite(metrics["eval_loss"]):
            self.row["eval_loss"] = metrics["eval_loss"]
        self._write()

    def _write(self) -> None:
        if self.row is not None:
            row, self.row = self.row, None
            self.append(row)
            self.written(row)
