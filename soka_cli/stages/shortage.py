"""Memory that runs out in training: the longest batch is tried first, and the error says what to change and by how much."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy
import torch

from soka_cli.data.encode import EncodedRow
from soka_cli.data.order import ReadingOrder
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import TrainSection


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """Whatever the block draws, what comes after it draws as if the block had not been."""
    python, array = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(array)


def longest_items(rows: Sequence[EncodedRow], order: ReadingOrder, count: int) -> list[EncodedRow | list[EncodedRow]]:
    """The micro-batch that needs the most memory: the `count` longest rows, or under packing the fullest packs of the first pass."""
    items: list[EncodedRow | list[EncodedRow]] = (
        [[rows[row] for row in item] for item in order.pass_items(0)] if order.packed else list(rows)
    )
    return sorted(items, key=lambda item: -tokens_of(item))[:count]


def tokens_of(item: EncodedRow | Sequence[EncodedRow]) -> int:
    """Tokens of a row, or of all rows of a pack."""
    return len(item["input_ids"]) if isinstance(item, dict) else sum(len(row["input_ids"]) for row in item)


def out_of_memory(train: TrainSection, error: BaseException, *, device: torch.device, longest: int, where: str) -> SokaError:
    """The error for a step that found no room.

    Args:
        longest: tokens of the longest row.
        where: which step.
    """
    return SokaError(
        f"Memory ran out on {device}: a micro-batch of {train.micro_batch_size} rows of up to {longest} tokens does not fit.",
        where=where,
        why=(str(error).strip().split("\n")[0] or type(error).__name__)[:300],
        hint="one of these, then the same command again:\n" + "\n".join(_remedies(train, longest)),
        exit_code=ExitCode.RESOURCES,
    )


def data_worker_ended(error: BaseException) -> SokaError | None:
    """The error to show where a process that makes batches (train.data_workers) was ended from outside; None for anything else."""
    text = str(error).strip().split("\n")[0]
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader worker"):
        return None
    return SokaError(
        "A process that makes batches was ended from outside.",
        where="train.data_workers",
        why=f"{text[:300]}; most often memory, or the shared memory of a container, ran out",
        hint="train.data_workers=0, or more shared memory (docker run --shm-size 8g), then the same command again",
        exit_code=ExitCode.RESOURCES,
    )


def _remedies(train: TrainSection, longest: int) -> Iterator[str]:
    smaller = next((size for size in range(train.micro_batch_size // 2, 0, -1) if train.batch_size % size == 0), None)
    if smaller is not None:
        share = smaller / train.micro_batch_size
        yield f"train.micro_batch_size={smaller} takes {share:.0%} of the memory of activations; the steps stay the same"
    if not train.activation_checkpointing:
        yield "train.activation_checkpointing=true keeps one activation a layer and computes the others twice; the steps stay the same"
    yield f"data.max_length={max(longest // 2, 1)} takes half of it, and cuts the rows that are longer"
