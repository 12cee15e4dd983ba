"""A tensor that is costly to make, kept for as long as what it was made of stays the same."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Kept:
    """Holds one tensor, and what it was made of.

    Small tensors are compared by value, which neither a write past autograd's version counter (`parameter.data`) nor a counter
    that is put back (FSDP) can deceive. A large one is compared by its address and version. On a device whose queue a comparison would
    wait for, nothing is kept.
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._place: tuple[int, int] | None = None
        self._made: Tensor | None = None

    def get(self, values: Sequence[Tensor], large: Tensor | None, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes of `values` and `large`: the one at hand if they are what they were, else a new one.

        The caller must not write to it.
        """
        if torch.compiler.is_compiling() or any(value.device.type != "cpu" for value in values):
            return make()
        place = None if large is None else (large.data_ptr(), large._version)
        if self._made is None or place != self._place or not self._are(values):
            self._made = None  # its memory serves for the next
            self._made = make()
            self._values, self._place = [value.detach().clone() for value in values], place
        return self._made

    def _are(self, values: Sequence[Tensor]) -> bool:
        return len(values) == len(self._values) and all(map(torch.equal, values, self._values))

    def drop(self) -> None:
        """Give the memory back."""
        self._values, self._place, self._made = [], None, None
