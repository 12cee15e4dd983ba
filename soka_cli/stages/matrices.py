"""What modules' terms are taken from: one matrix after the other, the next one read while this one is decomposed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from soka_cli.adapter.factors import weight_digest
from soka_cli.stages.work import Work

Item = TypeVar("Item")


class Matrix:
    """A module's weight [out, in], fp32 on the CPU; `digest` is `weight_digest` of it as the trained base will hold it.

    `learnt` is the matrix that a start from data decomposes in its place.
    """

    def __init__(self, values: Tensor, *, digest: str) -> None:
        self._values: list[Tensor] = [values]
        self.digest = digest
        self.learnt: Tensor | None = None

    def take(self) -> Tensor:
        """The values, once: nothing is kept here, so that whoever takes them can free them."""
        return self._values.pop()


def weight_matrices(works: Sequence[Work], dtype: str) -> Iterator[tuple[Work, Matrix]]:
    """Each module's own weight, read from the checkpoint; `dtype` is the one that the trained base will hold it in.

    Raises:
        SokaError: exit 3, a file that is damaged or cut short, or a weight that is not finite (named, with the first bad index).
    """
    for work in works:
        weight = work.weight.read()
        digest = weight_digest(weight.to(getattr(torch, dtype)))
        matrix = work.weight.matrix(weight).to(torch.float32).contiguous()  # (out, in)
        del weight
        yield work, Matrix(matrix, digest=digest)
        del matrix


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in their order, each made in a thread while the caller works on the one before: two are held at most."""
    pool, end = ThreadPoolExecutor(1, thread_name_prefix="read-ahead"), object()
    try:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
