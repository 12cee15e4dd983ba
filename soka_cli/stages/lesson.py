"""What a few training rows teach the target weights: the gradient of the loss, or the update of a few steps of full training."""

import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from soka_cli.data.batch import Collator
from soka_cli.data.encode import IGNORED, EncodedRow
from soka_cli.data.order import shuffled
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_base, load_tokenizer
from soka_cli.models.skeleton import Target
from soka_cli.run.reporter import ProgressTask
from soka_cli.stages.context import StageContext
from soka_cli.stages.matrix_store import MatrixStore
from soka_cli.stages.rows import encode, mixture, read_rows


class Lesson:
    """A base model of which only the target weights learn, and the rows that it reads.

    The loss is that of training, the mean over supervised tokens in nats a token, without dropout. A masked language model
    reads its rows with the supervised tokens masked; an encoder-decoder reads the prompt and writes the target.

    Args:
        context: model, data, `adapter.init_rows`, and for an early update `adapter.init_steps` and `adapter.init_lr`.
        targets: the modules whose weights learn.
        device: where to compute, a name from pick_device.

    Raises:
        SokaError: exit 3 for a base that cannot be loaded or trained, 4 for its data, 6 for memory, 7 where nothing can be learnt.
    """

    def __init__(self, context: StageContext, targets: Sequence[Target], device: str) -> None:
        recipe = context.recipe
        self.context = context
        self.section = recipe.adapter
        self.device = device
        self.tokenizer: Any = load_tokenizer(recipe.model, offline=context.offline)
        self.rows = self._drawn_rows()
        self.collate = Collator(self.tokenizer.pad_token_id)
        whole = recipe.model.model_copy(update={"quantization": "none"})  # a packed weight has no gradient
        self.model: Any = load_base(whole, device=device, offline=context.offline).requires_grad_(False)
        self.form = _form(self.model, self.tokenizer)
        self.options = {"use_cache": False} if self.form == "causal" else {}
        if self.section.init == "early-update" or recipe.model.dtype == "float16":  # steps and small gradients vanish in 16 bits
            self.model = self.model.float()
        self.targets = {target.name: target for target in targets}
        self.weights = {name: self._trainable(name) for name in self.targets}

    # ---- what is taught

    def gradient(self, store: MatrixStore) -> None:
        """d loss / d W of every target, [out, in] fp32, over `init_rows` rows.

        Micro-batches add up in the store: no more than one weight's gradient is held, since each goes there, and is freed, as
        soon as the backward pass has it.
        """

        def keep(name: str) -> Any:
            def hook(weight: Tensor) -> None:
                store.add(name, self._matrix(name, weight.grad))
                weight.grad = None

            return hook

        hooks = [weight.register_post_accumulate_grad_hook(keep(name)) for name, weight in self.weights.items()]
        rows = self.rows[: self.section.init_rows]
        with self.context.reporter.task("loss gradient", total=len(rows), unit="rows") as task:
            self._backward(rows, where=f"{len(rows)} rows", task=task)
        for hook in hooks:
            hook.remove()
        self._require_all(name for name in self.targets if name not in store)

    def early_update(self, store: MatrixStore) -> None:
        """W_t - W_0 of every target, [out, in] fp32, after t = `init_steps` steps of AdamW at a constant `init_lr`.

        Each step reads `init_rows` rows, the next ones at each and the first again after the last. Gradients and AdamW's
        moments of all targets are held; W_0 waits in the store.
        """
        for name, weight in self.weights.items():
            store.write(name, self._matrix(name, weight.detach()))
        optimizer = torch.optim.AdamW(self.weights.values(), lr=self.section.init_lr, weight_decay=0.0)
        endless = cycle(self.rows)
        with self.context.reporter.task("early update", total=self.section.init_steps, unit="steps") as task:
            for step in range(1, self.section.init_steps + 1):
                rows = list(islice(endless, min(self.section.init_rows, len(self.rows))))
                loss = self._backward(rows, where=f"step {step} of {self.section.init_steps}")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                task.advance(1, loss=round(loss, 4))
        self._require_all(name for name, weight in self.weights.items() if not optimizer.state.get(weight))
        for name, weight in self.weights.items():
            store.write(name, self._matrix(name, weight.detach()) - store.read(name))

    def _backward(self, rows: Sequence[EncodedRow], *, where: str, task: ProgressTask | None = None) -> float:
        """The mean loss over supervised tokens of `rows`, with its gradient added to what the weights have; counts rows in `task`."""
        loss = 0.0
        for share, read in self._loss_shares(rows):
            share.backward()
            loss += float(share.detach())
            if task is not None:
                task.advance(read)
        if not math.isfinite(loss):
            lower = f"adapter.init_lr={self.section.init_lr / 3:.1g}, or " if self.section.init == "early-update" else ""
            raise SokaError(
                f"Init {self.section.init} diverged: the loss is {loss:g}.",
                where=where,
                hint=f"try {lower}model.dtype=float32; adapter.init=weight reads no data",
                exit_code=ExitCode.TRAINING,
            )
        return loss

    # ---- rows and loss

    def _drawn_rows(self) -> list[EncodedRow]:
        """As many training rows as the start reads, or all there are, in an order that the seed fixes."""
        recipe = self.context.recipe
        training, _ = read_rows(self.context)
        steps = self.section.init_steps if self.section.init == "early-update" else 1
        order = mixture(recipe.data, [len(part.rows) for part in training], recipe.seed).order(0)
        drawn = set(order[: steps * self.section.init_rows])
        firsts = accumulate((len(part.rows) for part in training), initial=0)
        parts = [
            part.only(place for place in range(len(part.rows)) if first + place in drawn)
            for part, first in zip(training, firsts, strict=False)
        ]
        chosen = [part for part in parts if part.rows]
        encoded = shuffled(encode(self.context, self.tokenizer, chosen, f"init {self.section.init}").rows, recipe.seed, "lesson")
        if len(encoded) < self.section.init_rows:
            self.context.reporter.warn(f"init {self.section.init} has {len(encoded)} rows to read, {self.section.init_rows} were asked for")
        return encoded

    def _loss_shares(self, rows: Sequence[EncodedRow]) -> Iterator[tuple[Tensor, int]]:
        """Of each micro-batch its share of the mean loss over all supervised tokens of `rows`, and its number of rows."""
        size = self.context.recipe.train.micro_batch_size
        batches = [self._batch(rows[start : start + size]) for start in range(0, len(rows), size)]
        counts = [self._supervised(batch["labels"]) for batch in batches]
        for batch, count in zip(batches, counts, strict=True):
            inputs = {name: values.to(self.device) for name, values in batch.items()}
            yield self.model(**inputs, **self.options).loss * (count / sum(counts)), len(batch["labels"])

    def _batch(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` in the form that the model learns from."""
        batch = self.collate(rows)
        if self.form == "masked":
            batch["input_ids"] = batch["input_ids"].where(batch["labels"] == IGNORED, self.tokenizer.mask_token_id)
        if self.form == "encoder-decoder":
            batch = self.collate([_part(row, slice(None, _prompt_length(row))) for row in rows])
            batch["labels"] = self.collate([_part(row, slice(_prompt_length(row), None)) for row in rows])["labels"]
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    def _supervised(self, labels: Tensor) -> int:
        """Tokens that the loss is the mean of; a causal model never predicts the first of a row."""
        return int(((labels[:, 1:] if self.form == "causal" else labels) != IGNORED).sum())

    # ---- weights

    def _trainable(self, name: str) -> Tensor:
        weight: Tensor = self.model.get_submodule(name).weight
        if not weight.is_floating_point():
            raise SokaError(
                f"init {self.section.init} trains the base's weights, and {name} is packed as {str(weight.dtype).removeprefix('torch.')}",
                where="adapter.init",
                hint="adapter.init=weight, or name the model's unquantised checkpoint",
                exit_code=ExitCode.ENVIRONMENT,
            )
        return weight.requires_grad_(True)

    def _matrix(self, name: str, tensor: Tensor | None) -> Tensor:
        """[out, in] fp32 on the CPU, from the layer's own layout."""
        assert tensor is not None
        tensor = tensor.T if self.targets[name].transposed else tensor
        return tensor.to("cpu", torch.float32).contiguous()

    def _require_all(self, unreached: Iterator[str]) -> None:
        if names := list(unreached):
            raise SokaError(
                f"The loss does not reach {len(names)} of {len(self.targets)} target modules, the first is {names[0]}.",
                where="adapter.target_modules",
                hint="leave them out of adapter.target_modules, or take adapter.init=weight",
                exit_code=ExitCode.TRAINING,
            )


def _form(model: PreTrainedModel, tokenizer: Any) -> str:
    """causal, masked or encoder-decoder. Exit 3 for a model that has no loss over tokens, or no mask."""
    masked = type(model).__name__.endswith("ForMaskedLM")
    if "labels" not in inspect.signature(model.forward).parameters or (masked and tokenizer.mask_token_id is None):
        lack = "its tokenizer has no mask token" if masked else f"{type(model).__name__} has no head that predicts tokens"
        raise SokaError(
            "The base model has no loss to start from.",
            where="adapter.init",
            why=lack,
            hint="adapter.init=weight, which needs no loss",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return "masked" if masked else "encoder-decoder" if model.config.is_encoder_decoder else "causal"


def _prompt_length(row: EncodedRow) -> int:
    return next(index for index, label in enumerate(row["labels"]) if label != IGNORED)


def _part(row: EncodedRow, part: slice) -> EncodedRow:
    return {"input_ids": row["input_ids"][part], "labels": row["labels"][part], "row": row["row"]}
