"""One file per finished module while decompose is under way, so that a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from soka_cli.kron import KronFactors
from soka_cli.run.write import atomic_file, remove
from soka_cli.stages.work import Work


@dataclass(frozen=True)
class Part:
    """One finished module: its terms, its spectrum with the values' error bounds, its row of layers.json, the digest of the weight
    that they belong to, its row of search.json (None where its shape was given), and the weight's own singular values (None unless the
    terms are another matrix's, scaled to them)."""

    factors: KronFactors
    spectrum: Tensor
    error_bound: Tensor
    record: dict[str, Any]
    digest: str
    search: dict[str, Any] | None = None
    own_sigma: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        named = {"U": self.factors.left, "V": self.factors.right, "sigma": self.factors.sigma, "spectrum": self.spectrum}
        named["error_bound"] = self.error_bound
        if self.own_sigma is not None:
            named["own_sigma"] = self.own_sigma
        return {name: tensor.contiguous() for name, tensor in named.items()}

    def sha256(self, key: str) -> str:
        """Of all that the file holds, in hex."""
        seen = hashlib.sha256(f"{key}\n{json.dumps([self.record, self.search])}\n{self.digest}\n".encode())
        for name, tensor in self.tensors().items():
            seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            seen.update(tensor.numpy().data)
        return seen.hexdigest()


class PartFiles:
    """The parts of one run, by key: a digest of everything that a module's terms depend on. A file is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.safetensors"

    def among(self, works: Sequence[Work]) -> list[Work]:
        """Those of the modules that have a part, going by the files' names."""
        present = {path.name for path in self.folder.glob("[!.]*.safetensors")}
        return [work for work in works if self.path(work.key).name in present]

    def write(self, key: str, part: Part) -> None:
        """Raises SokaError: exit 6, the disk is full."""
        tensors = part.tensors()
        metadata = {"key": key, "record": json.dumps(part.record), "digest": part.digest, "search": json.dumps(part.search)}
        metadata["sha256"] = part.sha256(key)
        with atomic_file(self.path(key), needed=sum(tensor.nbytes for tensor in tensors.values())) as path:
            save_file(tensors, path, metadata=metadata)

    def read(self, key: str) -> Part | None:
        """The part, None where there is none.

        Raises:
            ValueError: the file is not as it was written.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                factors = KronFactors(*(file.get_tensor(name) for name in ("U", "V", "sigma")))
                spectrum, error_bound = (file.get_tensor(name) for name in ("spectrum", "error_bound"))
                record, search = json.loads(metadata["record"]), json.loads(metadata["search"])
                own_sigma = file.get_tensor("own_sigma") if "own_sigma" in file.keys() else None  # noqa: SIM118
                part = Part(factors, spectrum, error_bound, record, metadata["digest"], search, own_sigma)
            intact = metadata["key"] == key and metadata["sha256"] == part.sha256(key)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path.name}: {type(error).__name__}: {error}") from error
        if not intact:
            raise ValueError(f"{path.name}: its digest is not that of what it holds")
        return part

    def discard(self, key: str) -> None:
        remove(self.path(key))
