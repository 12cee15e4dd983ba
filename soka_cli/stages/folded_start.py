"""`adapter.fold_start`: theta0 goes into the base weights when training begins, with the model on its device and a checkpoint loaded."""

from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from soka_cli.adapter.fold import Folding, bytes_to_keep, fold_start
from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.reporter import Reporter
from soka_cli.run.resources import available_memory

IN_BF16 = "bf16 rounding (the weights moved by {:.2%} at the most), and a change of theta shows where it is larger than that"


class FoldedStart(TrainerCallback):
    """Folds before the first pass; comes before every callback that makes one."""

    def __init__(self, model: nn.Module, reporter: Reporter) -> None:
        self.model = model
        self.reporter = reporter
        self.folding: Folding | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """SokaError: exit 2, weights that cannot take it in; exit 6, no room for them as they were."""
        needed, free = bytes_to_keep(self.model), available_memory()
        if free is not None and needed > free:
            raise SokaError(
                f"{needed / 1e9:.2f} GB of main memory are needed for the weights as they were, and {free / 1e9:.2f} GB are free.",
                where="adapter.fold_start",
                hint="adapter.fold_start=false",
                exit_code=ExitCode.RESOURCES,
            )
        folding = self.folding = fold_start(self.model)
        exact = not args.bf16 and not folding.rounding
        self.reporter.say(
            f"theta0 is folded into {folding.layers} base weights; {folding.bytes / 1e6:,.1f} MB of main memory keep them as they were. "
            f"The start is the base up to {'fp32 rounding' if exact else IN_BF16.format(folding.rounding)}."
        )

    @property
    def figures(self) -> dict[str, Any] | None:
        """For env/train.json; None where nothing was left to train."""
        return None if self.folding is None else asdict(self.folding)
