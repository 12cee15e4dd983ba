"""The work of stage merge: the base's shards again, with W + K(theta) - K(theta0) in the adapted weights' places.

Neither transformers nor PEFT is imported for a plain base and adapter (`adapter_file`), and no tensor is held whole: memory is
torch's own, one module's factors and a few blocks of rows.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import first_non_finite
from soka_cli.models.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, Checkpoint
from soka_cli.models.shard import shard_header
from soka_cli.run.reporter import ProgressTask
from soka_cli.run.write import to_json
from soka_cli.stages.adapter_file import AdapterFile
from soka_cli.stages.updates import Update

if TYPE_CHECKING:
    from soka_cli.models.weights import StoredWeight

NOT_CARRIED = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".lock"}
BLOCK_ENTRIES = 2**21  # entries of a matrix that are held at a time: 8 MiB in fp32
CONVERTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # types that an asked dtype replaces; masks and indices stay


class Part(NamedTuple):
    """Some rows of a stored tensor: exactly, and as they are to be written. Where nothing is added they are the base's own."""

    exact: Tensor
    stored: Tensor


@dataclass(frozen=True)
class Merge:
    """A base checkpoint, what an adapter adds to it, and the type that the result is stored in (None: each tensor's own).

    `plain` maps a stored tensor to the module whose weight it is, one for one; `joined` maps one that several weights share, or
    that a weight is computed from, to those weights. Both are read, added to and written in blocks of rows, the latter whole.
    `given` holds the tensors that PEFT merged itself (`own_merge`), exactly.
    """

    base: Checkpoint
    update: Callable[[str], Update]
    plain: Mapping[str, str]
    joined: Mapping[str, list["StoredWeight"]]
    asked: torch.dtype | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Checkpoint, adapter: Path, dtype: str | None = None, *, trust: bool = False) -> "Merge":
        """Raises SokaError: exit 5 where adapter and base do not fit, exit 2 for a weight tied to the embedding or packed."""
        asked = getattr(torch, dtype) if dtype else None
        if (file := AdapterFile.of(adapter, base)) is not None:
            return cls(base, file.update, {f"{name}.weight": name for name in file.modules}, {}, asked)
        from soka_cli.stages.deltas import placed_deltas
        from soka_cli.stages.own_merge import OwnMerge, adds_matrices

        if not adds_matrices(adapter):
            return cls(base, no_update, {}, {}, asked, OwnMerge(adapter, base, trust=trust).given)
        deltas, weights = placed_deltas(adapter, base, trust=trust)
        return cls(base, deltas.update, *sorted_out(weights), asked)

    @property
    def touched(self) -> set[str]:
        """The stored tensors that the adapter adds to."""
        return {*self.plain, *self.joined, *self.given}

    @property
    def modules(self) -> int:
        """Adapted modules, or the tensors that PEFT merged itself."""
        joined = {weight.target.name for weights in self.joined.values() for weight in weights}
        return len({*self.plain.values(), *joined, *self.given})

    @property
    def dtype(self) -> str:
        """The adapted weights' type in the result, e.g. bfloat16; several are joined by a comma."""
        return ",".join(sorted({str(self.type_of(name)).removeprefix("torch.") for name in self.touched}))

    def type_of(self, name: str) -> torch.dtype:
        """The type that a tensor gets."""
        own = self.base.dtype(name)
        return self.asked if self.asked is not None and own in CONVERTED else own

    def parts(self, name: str) -> Iterator[Part]:
        """A tensor from its first row to its last, in blocks; exit 8 where a value has no place in the type."""
        if name in self.given or name in self.joined:
            yield self._rounded(name, self.given[name] if name in self.given else self._joined(name), 0)
            return
        size = self.base.shape(name)
        update = self._update(name, size) if name in self.plain else None
        if not size:
            yield self._rounded(name, self.base.tensor(name), 0)
            return
        height = max(BLOCK_ENTRIES // max(prod(size[1:]), 1), 1)
        for first in range(0, size[0], height):
            last = min(first + height, size[0])
            rows = self.base.rows(name, first, last)
            yield self._rounded(name, rows if update is None else added(rows, update.rows(first, last)), first)

    def _update(self, name: str, size: tuple[int, ...]) -> Update:
        update = self.update(self.plain[name])
        if update.size != size:
            raise unmergeable(name, f"the adapter adds {update.size} to a weight of {size}")
        return update

    def _joined(self, name: str) -> Tensor:
        """The parameters that the stored tensors make, with what is added to each, joined again; they are held whole."""
        held = self.joined[name]
        parameters = held[0].split({one: wide(self.base.tensor(one)) for one in held[0].tensors})
        for weight in held:
            parameter, update = parameters[weight.target.weight_name], self.update(weight.target.name)
            if update.size != tuple(parameter.shape):
                raise unmergeable(name, f"the adapter adds {update.size} to a weight of {tuple(parameter.shape)}")
            parameters[weight.target.weight_name] = added(parameter, update.rows(0, update.size[0]))
        return held[0].join(parameters)[name]

    def _rounded(self, name: str, exact: Tensor, first: int) -> Part:
        stored = exact.to(self.type_of(name))
        if (name in self.touched or stored.dtype != exact.dtype) and (index := first_non_finite(stored)) is not None:
            value, place = exact[index].item(), ((index[0] + first, *index[1:]) if index else index)
            raise unmergeable(name, f"the merged value {value:g} at {place} has no place in {str(stored.dtype)[6:]}")
        return Part(exact, stored)


def no_update(module: str) -> Update:
    raise KeyError(module)


def added(weight: Tensor, update: Tensor) -> Tensor:
    """W + update in fp32 (fp64 where W is). Where nothing is added the weight keeps its bits: -0.0 + 0.0 would be 0.0."""
    exact = wide(weight)
    return torch.where(update == 0, exact, exact + update)


def wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def sorted_out(weights: "Iterable[StoredWeight]") -> tuple[dict[str, str], dict[str, list["StoredWeight"]]]:
    """Weights that are a stored tensor each, and those that share tensors or are made of several."""
    stored: dict[str, list[StoredWeight]] = {}
    for weight in weights:
        for name in weight.tensors:
            stored.setdefault(name, []).append(weight)
    plain = {name: held[0].target.name for name, held in stored.items() if len(held) == 1 and held[0].is_plain}
    return plain, {name: held for name, held in stored.items() if name not in plain}


def unmergeable(name: str, why: str) -> SokaError:
    return SokaError(
        "the merged model would be wrong, so none is written",
        where=f"tensor {name}",
        why=why,
        hint="look at the training's loss and gradient norm (soka report); train again with a smaller train.lr",
        exit_code=ExitCode.CHECK,
    )


def carried_files(base: Checkpoint) -> list[Path]:
    """What goes into the merged folder beside weights: config, tokenizer, generation settings, licences."""
    names = {path for path in base.folder.iterdir() if path.is_file() and path.suffix not in NOT_CARRIED and not path.name.startswith(".")}
    sharded = base.shards[0].name != WEIGHTS_FILE
    return sorted(path for path in names if not path.name.endswith(".index.json") or (sharded and path.name == INDEX_FILE))


def needed_bytes(base: Checkpoint, dtype: str | None = None) -> int:
    """Room that the merged folder takes."""
    carried = sum(path.stat().st_size for path in carried_files(base))
    if dtype is None:
        return base.bytes + carried
    asked: torch.dtype = getattr(torch, dtype)
    own = {name: base.dtype(name) for name in base.names}
    grown = sum(base.nbytes(name) * (asked.itemsize - one.itemsize) // one.itemsize for name, one in own.items() if one in CONVERTED)
    return base.bytes + grown + carried


def write_model(merge: Merge, folder: Path, task: ProgressTask) -> None:
    """Fill an empty folder: the base's files, its shards one after the other, block by block."""
    for path in carried_files(merge.base):
        shutil.copyfile(path, folder / path.name)
    if merge.asked is not None:
        note_type(merge, folder)
    for shard in merge.base.shards:
        names = [name for name in merge.base.names if merge.base.entry(name).shard == shard.name]
        with (folder / shard.name).open("wb") as file:
            file.write(shard_header(shard, {name: merge.type_of(name) for name in names}))
            for name in names:
                for part in merge.parts(name):
                    file.write(bits(part.stored).numpy().data)
                task.advance(1, tensor=name)


def note_type(merge: Merge, folder: Path) -> None:
    """Say the asked type in config.json, and the new size in the index."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf8"))
    name = str(merge.asked).removeprefix("torch.")
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section |= {key: name for key in ("dtype", "torch_dtype") if section.get(key) is not None}
    if not any(key in config for key in ("dtype", "torch_dtype")):
        config["dtype"] = name
    (folder / CONFIG_FILE).write_text(to_json(config), encoding="utf8")
    if (folder / INDEX_FILE).is_file():
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf8"))
        if isinstance(index.get("metadata"), dict) and "total_size" in index["metadata"]:
            index["metadata"]["total_size"] = sum(prod(merge.base.shape(one)) * merge.type_of(one).itemsize for one in merge.base.names)
            (folder / INDEX_FILE).write_text(to_json(index), encoding="utf8")


def read_back(merge: Merge, folder: Path, task: ProgressTask) -> float:
    """Compare what lies on the disk with what should: the largest |stored - exact| over all adapted weights.

    Raises:
        SokaError: exit 8, naming the tensor, where an adapted weight is not the exact value rounded once, or another one
            is not the base's (in the type that was asked for), bit for bit.
    """
    written = Checkpoint(folder)
    error = 0.0
    for name in merge.base.names:
        touched, row = name in merge.touched, 0
        for part in merge.parts(name):
            height = len(part.stored) if part.stored.dim() else 0
            found = written.rows(name, row, row + height) if height else written.tensor(name)
            row += height
            if not torch.equal(bits(found), bits(part.stored)):
                rule = "it is not W + K(theta) - K(theta0) rounded once"
                raise misread(name, rule if touched else "the adapter does not touch it, and it is not the base's")
            if touched:
                error = max(error, float((found.to(part.exact.dtype) - part.exact).abs().max()))
        task.advance(1, tensor=name)
    return error


def misread(name: str, why: str) -> SokaError:
    return SokaError(
        "the merged model on the disk is not what was written",
        where=f"tensor {name}",
        why=why,
        hint="check the disk, then give the same command again",
        exit_code=ExitCode.CHECK,
    )


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes in order; compared so, -0.0 is not 0.0 and a NaN is itself."""
    return tensor.contiguous().flatten().view(torch.uint8)
