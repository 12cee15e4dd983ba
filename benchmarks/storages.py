"""torch's own accounting on any device: the bytes of all tensors' storages that are alive at once, operation by operation."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class PeakStorages(TorchDispatchMode):
    """While active, counts each storage that an operation reads or makes, from then until it is freed.

    Views share their storage and count once; storages of the meta device not at all. `peak` and `present` are bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.present = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_flatten((args, kwargs, result))[0]:
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        self._alive.add(key)
        self.present += size
        self.peak = max(self.peak, self.present)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.present -= size
