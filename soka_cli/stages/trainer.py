"""transformers' Trainer with what it lacks: atomic checkpoints, a stop before a poisonous step, a held-out loss per token."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from soka_cli.data.encode import IGNORED
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.offload import adapting
from soka_cli.stages.checkpoints import Checkpoints
from soka_cli.stages.data_worker import begin_data_worker
from soka_cli.stages.sharded import is_by_name, is_sharded, optimizer_state, restore_optimizer, whole, whole_state
from soka_cli.stages.shortage import untouched_random_state
from soka_cli.stages.team import Team

OPTIMIZER_NAME, SCHEDULER_NAME = "optimizer.pt", "scheduler.pt"  # as transformers names them


class RunTrainer(Trainer):
    """Trains adapters or whole models into a run directory.

    Args:
        team: the processes that train together.
        checkpoints: where checkpoints go; they hold adapter (or model), optimizer, schedule, RNG and state, never a frozen base.
        apart: peak rates of parameters that have their own, by a part of their names; None takes that of the others.
        longest: the items of the micro-batch that needs the most memory.
        keep: the step whose checkpoint stays whatever its age.
        module_norms: whether to take each module's gradient norm.
        save_more: writes further files into a checkpoint's folder.
        options: Trainer's own.
    """

    optimizer: torch.optim.Optimizer
    control: TrainerControl
    is_fsdp_enabled: bool

    def __init__(
        self,
        *,
        team: Team,
        checkpoints: Checkpoints,
        apart: Mapping[str, float | None],
        longest: Sequence[Any],
        keep: Callable[[], int | None] = lambda: None,
        module_norms: bool = False,
        save_more: Callable[[Path], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        self.team = team
        self.checkpoints = checkpoints
        self.apart = {name: rate for name, rate in apart.items() if rate is not None}
        self.longest = longest
        self.keep = keep
        self.takes_module_norms = module_norms
        self._module_norms: dict[str, Tensor] = {}
        self.save_more = save_more
        self._staged: Path | None = None
        self._rows: list[int] = []  # data rows of the step under way
        self._tokens: Tensor | None = None  # real tokens of a batch that has no attention mask

    # ---- optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the factors, what is never decayed (norms, biases of full training), and what has a rate of its own."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self._parameter_groups(), **options)
        return self.optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        decayed = set(self.get_decay_parameter_names(self.model))
        groups: dict[str, dict[str, Any]] = {
            "factors": {"params": [], "weight_decay": self.args.weight_decay},
            "undecayed": {"params": [], "weight_decay": 0.0},
            **{part: {"params": [], "weight_decay": self.args.weight_decay, "lr": rate} for part, rate in self.apart.items()},
        }
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                apart = next((part for part in self.apart if part in name.split(".")), None)
                groups[apart or ("factors" if name in decayed else "undecayed")]["params"].append(parameter)
        return [group for group in groups.values() if group["params"]]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers does, then the rates that this run's schedule has at that step: an extended run has a longer one.

        The optimizer's state may be that of sharded parameters, whatever they are now, and the other way round.
        """
        if checkpoint is None:
            return
        optimizer = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        if is_sharded(self.model) or is_by_name(optimizer):
            restore_optimizer(self.model, self.optimizer, optimizer)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        schedule: Any = self.lr_scheduler
        rates = [base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        schedule._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    # ---- before the first step

    def get_train_dataloader(self) -> Any:
        """As transformers makes it; its processes outlive a signal that means their trainer."""
        loader: Any = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # Accelerate's wraps the one that starts processes
        inner.worker_init_fn = partial(begin_data_worker, inner.worker_init_fn)
        return loader

    def try_longest(self) -> None:
        """A forward and backward pass over the longest micro-batch, beside all that a later step holds, so that memory runs out now if it
        ever does; leaves no trace.

        Not covered: main memory, which the system gives when it is written to and not when it is asked for.
        """
        inputs = self.data_collator(self.longest)
        supervised = (inputs["labels"][:, 1:] != IGNORED).sum().to(self.args.device)
        self.current_gradient_accumulation_steps = 1
        room = self._room_of_later_steps()
        with untouched_random_state(self.args.device):
            self.training_step(self.model_wrapped, inputs, num_items_in_batch=supervised)
        del room
        self.model.zero_grad()
        self._rows = []

    def _room_of_later_steps(self) -> list[Tensor]:
        """What lies beside the activations from the second step on: gradients that accumulate, and AdamW's two moments of each trained
        value (of this process's shard), in 8 bits where the optimizer keeps them so. A resumed optimizer has its moments already."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.args.gradient_accumulation_steps > 1:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        if self.optimizer.state:
            return []
        kind = torch.uint8 if "8bit" in self.args.optim else torch.float32
        return [torch.empty_like(parameter, dtype=kind) for parameter in trained for _ in range(2)]

    # ---- steps

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._tokens = inputs.pop("tokens", None)
        rows = inputs.pop("row", None)
        if rows is not None and self.model.training:
            self._rows.extend(rows.tolist())
        return super()._prepare_inputs(inputs)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """As transformers does; without a mask it would count padding too."""
        if self._tokens is None:
            super()._track_num_input_tokens(inputs)
        else:
            self.state.num_input_tokens_seen += int(self.accelerator.gather(self._tokens.to(self.args.device)).sum())

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """The norm before clipping; refuses to step on a loss or gradient that is not finite."""
        if grad_norm is None and self.takes_module_norms:  # nothing was clipped
            self._module_norms = module_norms(self.model)
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = whole(norm) if isinstance(norm, Tensor) else norm
        found = self.team.gathered((float(self._tr_loss), float(norm), self._rows))
        if not all(math.isfinite(loss) and math.isfinite(size) for loss, size, _ in found):
            losses = "; ".join(f"{loss:g}, the gradient norm {size:g}" for loss, size, _ in found)
            raise self._diverged(f"the loss is {losses}", [row for _, _, rows in found for row in rows])
        self._rows = []
        return norm

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        if self.takes_module_norms:
            self._module_norms = module_norms(self.model)
        return super()._clip_grad_norm(model)

    def module_norms(self) -> dict[str, float]:
        """Each module's gradient norm in the last step, before clipping."""
        return {name: float(whole(norm)) for name, norm in self._module_norms.items()}

    def _diverged(self, why: str, rows: list[int]) -> SokaError:
        steps = self.checkpoints.steps()
        last = f"the last good checkpoint is {self.checkpoints.path(steps[-1])}" if steps else "no checkpoint was written yet"
        shown = ", ".join(map(str, sorted(rows)[:32]))
        return SokaError(
            "Training diverged.",
            where=f"step {self.state.global_step + 1} (not taken), data rows {shown}" if rows else f"after step {self.state.global_step}",
            why=f"{why}; {last}",
            hint=f"lower the learning rate, e.g. train.lr={self.args.learning_rate / 3:.1g}, and start again with --force",
            exit_code=ExitCode.TRAINING,
        )

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean over all supervised tokens of the held-out rows, in nats a token."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # nats, tokens
        for items, counts in self.team.share(self._held_out_batches()):
            inputs = self._prepare_inputs(self.data_collator(items))
            supervised = (inputs["labels"][:, 1:] != IGNORED).sum()
            loss = float(self.compute_loss(self.model, inputs, num_items_in_batch=supervised)) / self.team.count  # it foresees DDP's mean
            sums += counts * torch.tensor([loss * int(supervised), int(supervised)], dtype=torch.float64)
        total, tokens = self.team.total(sums).tolist()
        if not math.isfinite(total):
            raise self._diverged(f"eval_loss is {total:g}", [])
        return float(total / tokens)

    def _held_out_batches(self) -> list[list[Any]]:
        rows: Any = self.eval_dataset
        size = self.args.per_device_eval_batch_size
        return [[rows[place] for place in range(start, min(start + size, len(rows)))] for start in range(0, len(rows), size)]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """`eval_loss`, told to the callbacks."""
        metrics = {"eval_loss": self.held_out_loss()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staged) if self._staged is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write beside, then rename: transformers' own files, ours, and the list of their digests last."""
        step = self.state.global_step
        if not self.team.leads:
            self._save_into(Path(self.team.told("")), model, trial)
            self.team.wait()
            return
        with self.checkpoints.writing(step, spare=self.keep()) as folder:
            self.team.told(str(folder))
            self._save_into(folder, model, trial)
            inner = folder / self.checkpoints.path(step).name  # where super put it
            if self.save_more is not None:
                self.save_more(inner)
            for path in sorted(inner.iterdir()):
                path.rename(folder / path.name)
            inner.rmdir()
        self.team.wait()

    def _save_into(self, folder: Path, model: nn.Module, trial: Any) -> None:
        """What transformers writes: the first process everything, each its own random state."""
        self._staged = folder
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staged = None
        self.team.wait()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers does; of a sharded model what is trained alone is gathered, never the frozen base."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state(self.model)
        if self.args.should_save:
            self._save(output_dir, state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights and configuration alone: the tokenizer lies with the base, and arguments are not pickled."""
        only_adapter = {} if self.model_is_whole else {"save_embedding_layers": False}
        self.model.save_pretrained(output_dir, state_dict=state_dict, **only_adapter)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state(self.model, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As transformers does for a model that is whole; a model that will be sharded is loaded before that."""
        if is_sharded(self.model):
            return
        kept, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            with adapting(self.model):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        finally:
            self.is_fsdp_enabled = kept

    @property
    def model_is_whole(self) -> bool:
        """Whether every weight is trained, rather than an adapter."""
        return not hasattr(self.model, "peft_config")


class LongestFirst(TrainerCallback):
    """Tries the longest micro-batch before the first step."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.try_longest()


@torch.no_grad()
def module_norms(model: nn.Module) -> dict[str, Tensor]:
    """The gradient norm of every module that learns, by its name in the transformers model: that of all its parameters together."""
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares.setdefault(module_of(name, prefix), []).append(parameter.grad.float().square().sum())
    return {name: torch.stack(parts).sum().sqrt() for name, parts in squares.items()}


def module_of(parameter: str, prefix: str | None) -> str:
    """`base_model.model.layers.0.q_proj.soka_U.default` -> `layers.0.q_proj`; the adapter's own parts begin with `prefix`."""
    parts = parameter.removeprefix("base_model.model.").split(".")
    own = next((index for index, part in enumerate(parts) if prefix and part.startswith(prefix)), len(parts) - 1)
    return ".".join(parts[:own])
