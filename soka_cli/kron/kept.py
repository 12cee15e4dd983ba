"""What is costly to make, kept for as long as what it was made of stays the same."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """Holds one thing made of tensors, and what those tensors were.

    On a CPU small tensors are compared by value, which neither a write past autograd's version counter (`parameter.data`) nor a counter
    that is put back (FSDP) can deceive. A large one, and all on a device whose queue a comparison would wait for, are compared by address
    and version.
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._places: list[tuple[int, int]] = []
        self._how: Hashable = None
        self._made: Made | None = None

    def get(self, values: Sequence[Tensor], large: Tensor | None, make: Callable[[], Made], how: Hashable = None) -> Made:
        """What `make` makes of `values` and `large`: the one at hand if they, and `how` it is made (a type, an order), are what they
        were, else a new one.

        The caller must not write to it. A traced graph makes its own.
        """
        if torch.compiler.is_compiling():
            return make()
        by_value = values[0].device.type == "cpu"
        placed = [*(() if by_value else values), *(() if large is None else (large,))]
        places = [(one.data_ptr(), one._version) for one in placed]
        made = self._made
        if made is None or how != self._how or places != self._places or (by_value and not self._are(values)):
            self._made = None  # its memory serves for the next
            self._made, self._how = (made := make()), how
            self._values, self._places = [one.detach().clone() for one in values] if by_value else [], places
        return made

    def _are(self, values: Sequence[Tensor]) -> bool:
        return len(values) == len(self._values) and all(map(torch.equal, values, self._values))

    def drop(self) -> None:
        """Give the memory back."""
        self._values, self._places, self._made = [], [], None
