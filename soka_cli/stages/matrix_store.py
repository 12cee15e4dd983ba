"""Matrices of modules kept on the disk while decompose is under way, so that memory holds one of them at a time."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from soka_cli.models.skeleton import Target
from soka_cli.run.digest import json_digest
from soka_cli.run.resources import require_space
from soka_cli.run.write import read_json, remove, sync_file, write_json

BYTES = 4  # of an fp32 value


class MatrixStore:
    """One file of fp32 values per module, [out, in]; whole once `close` has written its list.

    Args:
        folder: where the files lie; made when the first is written.
        targets: the modules, with their sizes.
    """

    def __init__(self, folder: Path, targets: Sequence[Target]) -> None:
        self.folder = folder
        self.sizes = {target.name: (target.out_features, target.in_features) for target in targets}

    def holds(self, key: str) -> bool:
        """Whether all matrices are there, from a run that closed the store with this key."""
        whole = all(name in self and self._path(name).stat().st_size == self._bytes(name) for name in self.sizes)
        return whole and self._list.is_file() and read_json(self._list) == {"key": key}

    def open(self) -> None:
        """Begin anew. SokaError (exit 6) where the disk has no room for all matrices."""
        remove(self.folder)
        require_space(self.folder, sum(map(self._bytes, self.sizes)))
        self.folder.mkdir(parents=True)

    def close(self, key: str) -> None:
        """Bring the files to the disk and say that they are whole; `key` stands for all that the matrices depend on."""
        for name in self.sizes:
            sync_file(self._path(name))
        write_json(self._list, {"key": key})

    def __contains__(self, name: object) -> bool:
        return self._path(str(name)).is_file()

    def write(self, name: str, matrix: Tensor) -> None:
        """Keep a matrix, in place of an earlier one."""
        self._path(name).write_bytes(matrix.numpy().data)

    def add(self, name: str, matrix: Tensor) -> None:
        """Add to the matrix that is kept; the first one begins the sum."""
        self.write(name, self.read(name) + matrix if name in self else matrix)

    def read(self, name: str) -> Tensor:
        """A copy of the matrix, [out, in] fp32 on the CPU."""
        out_features, in_features = self.sizes[name]
        values = torch.from_file(str(self._path(name)), shared=False, size=out_features * in_features, dtype=torch.float32)
        return values.clone().reshape(out_features, in_features)

    def _path(self, name: str) -> Path:
        return self.folder / f"{json_digest(name)[:32]}.f32"

    def _bytes(self, name: str) -> int:
        out_features, in_features = self.sizes[name]
        return BYTES * out_features * in_features

    @property
    def _list(self) -> Path:
        return self.folder / "whole.json"
