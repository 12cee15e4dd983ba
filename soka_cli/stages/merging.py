"""The work of stage merge: copies of the base's shards with W + K(theta) - K(theta0) written over the adapted weights."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import first_non_finite
from soka_cli.models.checkpoint import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from soka_cli.models.skeleton import refuse_tied, skeleton, target
from soka_cli.models.weights import StoredWeight, stored_weights
from soka_cli.run.reporter import ProgressTask
from soka_cli.stages.deltas import Deltas

NOT_CARRIED = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".lock"}


@dataclass(frozen=True)
class Merge:
    """A base checkpoint, what an adapter adds, and the adapted weights that each stored tensor holds."""

    base: Checkpoint
    deltas: Deltas
    stored: Mapping[str, list[StoredWeight]]

    @classmethod
    def of(cls, base: Checkpoint, adapter: Path) -> "Merge":
        """Raises SokaError: exit 5 where adapter and base do not fit, exit 2 for a weight tied to the embedding or packed."""
        deltas = Deltas(adapter, base.folder)
        empty = skeleton(base.folder)
        wanted = [target(empty, name) for name in deltas.modules]
        refuse_tied(wanted)
        weights = stored_weights(empty, base, wanted).values()
        refuse_unwritable(weights)
        stored: dict[str, list[StoredWeight]] = {}
        for weight in weights:
            for name in weight.tensors:
                stored.setdefault(name, []).append(weight)
        return cls(base, deltas, stored)

    @property
    def dtype(self) -> str:
        """The adapted weights' type in the checkpoint, e.g. bfloat16; several are joined by a comma."""
        return ",".join(sorted({str(self.base.dtype(name)).removeprefix("torch.") for name in self.stored}))

    def exact(self, name: str) -> Tensor:
        """W + K(theta) - K(theta0) in fp32 (fp64 where W is), laid out as stored."""
        held = self.stored[name]
        parameters = held[0].split({one: _wide(self.base.tensor(one)) for one in held[0].tensors})
        for weight in held:
            parameters[weight.target.weight_name] = self._added(weight, parameters[weight.target.weight_name])
        return held[0].join(parameters)[name]

    def _added(self, weight: StoredWeight, wide: Tensor) -> Tensor:
        delta = self.deltas.delta(weight.target.name)
        if delta.shape != wide.shape:
            raise _unmergeable(weight.tensors[0], f"the adapter adds {tuple(delta.shape)} to a weight of {tuple(wide.shape)}")
        # Where nothing is added the weight keeps its bits: -0.0 + 0.0 would be 0.0.
        return torch.where(delta == 0, wide, wide + delta)

    def merged(self, name: str) -> tuple[Tensor, Tensor]:
        """The exact value and its one rounding to the checkpoint's type. Exit 8 where a value does not fit the type."""
        exact = self.exact(name)
        rounded = exact.to(self.base.dtype(name))
        if (index := first_non_finite(rounded)) is not None:
            raise _unmergeable(name, f"the merged value {exact[index].item():g} at {index} has no place in {str(rounded.dtype)[6:]}")
        return exact, rounded


def refuse_unwritable(weights: Iterable[StoredWeight]) -> None:
    """Exit 2, before anything is written, where the base's files have no place for a merged weight."""
    for weight in weights:
        if reason := weight.unwritable:
            raise SokaError(
                f"the adapter cannot be merged into this base: {weight.target.name} has no place of its own in its files",
                where=weight.where,
                why=reason,
                hint="train on the float model that this base was made from, and merge into that",
                exit_code=ExitCode.USAGE,
            )


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _unmergeable(name: str, why: str) -> SokaError:
    return SokaError(
        "the merged model would be wrong, so none is written",
        where=f"tensor {name}",
        why=why,
        hint="look at the training's loss and gradient norm (soka report); train again with a smaller train.lr",
        exit_code=ExitCode.CHECK,
    )


def carried_files(base: Checkpoint) -> list[Path]:
    """What goes into the merged folder unchanged: config, tokenizer, generation settings, licences; no weights."""
    names = {path for path in base.folder.iterdir() if path.is_file() and path.suffix not in NOT_CARRIED and not path.name.startswith(".")}
    sharded = base.shards[0].name != WEIGHTS_FILE
    return sorted(path for path in names if not path.name.endswith(".index.json") or (sharded and path.name == INDEX_FILE))


def needed_bytes(base: Checkpoint) -> int:
    """Room that the merged folder takes."""
    return base.bytes + sum(path.stat().st_size for path in carried_files(base))


def write_model(merge: Merge, folder: Path, task: ProgressTask) -> None:
    """Fill an empty folder: the base's files, shard by shard, with the adapted weights written over."""
    for path in carried_files(merge.base):
        shutil.copyfile(path, folder / path.name)
    for shard in merge.base.shards:
        shutil.copyfile(shard, folder / shard.name)
    for name in merge.stored:
        entry = merge.base.entry(name)
        _, rounded = merge.merged(name)
        with (folder / entry.shard).open("r+b") as file:
            file.seek(entry.start)
            file.write(_bits(rounded).numpy().data)
        task.advance(1, tensor=name)


def read_back(merge: Merge, folder: Path, task: ProgressTask) -> float:
    """Compare what lies on the disk with what should: the largest |stored - exact| over all adapted weights.

    Raises:
        SokaError: exit 8, naming the tensor, where an adapted weight is not the exact value rounded once, or another one
            is not the base's, bit for bit.
    """
    written = Checkpoint(folder)
    error = 0.0
    for name in merge.base.names:
        stored = written.tensor(name)
        if name not in merge.stored:
            if not torch.equal(_bits(stored), _bits(merge.base.tensor(name))):
                raise _misread(name, "the adapter does not touch it, and it is not the base's")
            continue
        exact, rounded = merge.merged(name)
        if not torch.equal(_bits(stored), _bits(rounded)):
            raise _misread(name, "it is not W + K(theta) - K(theta0) rounded once")
        error = max(error, float((stored.to(exact.dtype) - exact).abs().max()))
        task.advance(1, tensor=name)
    return error


def _misread(name: str, why: str) -> SokaError:
    return SokaError(
        "the merged model on the disk is not what was written",
        where=f"tensor {name}",
        why=why,
        hint="check the disk, then give the same command again",
        exit_code=ExitCode.CHECK,
    )


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes in order; compared so, -0.0 is not 0.0 and a NaN is itself."""
    return tensor.contiguous().flatten().view(torch.uint8)
