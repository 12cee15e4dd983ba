"""A base checkpoint on disk, read one tensor at a time."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
Read = TypeVar("Read")
SAMPLE_BYTES = 4096
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes `start` to `end` of its shard, counted from the file's beginning."""

    shard: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in the order of their names.

    Raises:
        SokaError: exit 3, where there are none (or only pickles), or a shard that the index names is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise _without_safetensors(folder)
    files = [folder / name for name in sorted(set(read_index(folder / INDEX_FILE).values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise base_error(
            f"{len(missing)} of {len(files)} weight files of the base model are missing: {', '.join(missing[:3])}",
            where=str(folder / missing[0]),
            why=f"{INDEX_FILE} names them",
            hint="copy or download the missing files into the folder, or name another model: model.name=FOLDER",
        )
    return files


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from model.safetensors.index.json. Exit 3 where the file is damaged."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise base_error(
            f"the base model's {path.name} cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: no valid JSON with a weight_map",
            hint="copy or download the file again",
        ) from None
    if strange := [name for name in names.values() if Path(name).name != name]:
        raise base_error(
            f"the base model's {path.name} names a file outside its folder: {strange[0]}",
            where=str(path),
            hint="take the model from a source you trust",
        )
    return names


def base_error(what: str, *, where: str, why: str = "", hint: str) -> SokaError:
    """A fault of the base model's files: exit 3."""
    return SokaError(what, where=where, why=why, hint=hint, exit_code=ExitCode.ENVIRONMENT)


def _without_safetensors(folder: Path) -> SokaError:
    pickles = sorted({path.name for pattern in PICKLES for path in folder.glob(pattern)})
    if not pickles:
        return base_error(
            "the base model has no weights: neither model.safetensors nor its index is there",
            where=str(folder),
            hint="name a folder or Hub id whose weights are safetensors: model.name=FOLDER",
        )
    return base_error(
        f"the base model's weights are pickles ({pickles[0]}), which soka does not read",
        where=str(folder),
        why="loading a pickle runs whatever code it holds",
        hint='convert it once, on a machine you can spare: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('CONVERTED')\", copy the tokenizer files beside it, then model.name=CONVERTED",
    )


class Checkpoint:
    """The tensors of a model folder by name, without holding any of them.

    Each access opens the shard, reads one tensor and closes it again, so memory stays at one tensor's size however large
    the shards are. Nothing is mapped into memory: a file that shrinks or a disk that fails is an error, not a signal.

    Raises:
        SokaError: exit 3, naming the file, where a shard is missing, cut short or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Path] = weight_files(folder)
        self._entries: dict[str, Entry] = {}
        for shard in self.shards:
            self._entries.update(_read_header(shard))
        if (folder / INDEX_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file():
            self._check_index(read_index(folder / INDEX_FILE))

    @property
    def names(self) -> list[str]:
        """Tensor names, in the files' order."""
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Where a tensor lies, for writing over a copy of its shard."""
        return self._entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Size of a tensor, read from the header."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor. Exit 3 where torch has none for it."""
        stored = self._entries[name].dtype
        if stored not in DTYPES:
            raise base_error(
                f"tensor {name} of the base model has type {stored}, which soka does not read",
                where=str(self.folder / self._entries[name].shard),
                hint="take the model's unquantised weights (float32, bfloat16 or float16)",
            )
        return DTYPES[stored]

    def tensor(self, name: str) -> Tensor:
        """A copy of one tensor, in the checkpoint's type, on the CPU."""
        entry, dtype = self._entries[name], self.dtype(name)
        shard = self.folder / entry.shard
        return _guarded(shard, lambda: _read(shard, entry)).view(dtype).reshape(entry.shape)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (excluded) of a tensor along its first dimension; memory is theirs alone."""
        entry, dtype = self._entries[name], self.dtype(name)
        width = (entry.end - entry.start) // max(entry.shape[0], 1)  # bytes of a row
        part = replace(entry, start=entry.start + first * width, end=entry.start + last * width)
        shard = self.folder / entry.shard
        return _guarded(shard, lambda: _read(shard, part)).view(dtype).reshape(last - first, *entry.shape[1:])

    @property
    def parameters(self) -> int:
        """Entries of all tensors."""
        return sum(_size(entry.shape) for entry in self._entries.values())

    def nbytes(self, name: str) -> int:
        """Size of a tensor in its file, in bytes."""
        return self._entries[name].end - self._entries[name].start

    @property
    def bytes(self) -> int:
        """Size of all shards, in bytes."""
        return sum(shard.stat().st_size for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """sha256 over config.json, every tensor's name, type and size, and its first and last 4096 bytes.

        Other weights under the same names give another digest (training moves every tensor); an edit in the middle of
        one tensor alone is not seen. Independent of the folder, the shards and the machine.
        """
        seen = hashlib.sha256((self.folder / CONFIG_FILE).read_bytes())
        for name in sorted(self._entries):
            entry = self._entries[name]
            seen.update(f"\n{name} {entry.dtype} {entry.shape}\n".encode())
            with (self.folder / entry.shard).open("rb") as file:
                file.seek(entry.start)
                seen.update(file.read(min(SAMPLE_BYTES, entry.end - entry.start)))
                file.seek(max(entry.start, entry.end - SAMPLE_BYTES))
                seen.update(file.read(min(SAMPLE_BYTES, entry.end - entry.start)))
        return seen.hexdigest()

    def _check_index(self, index: dict[str, str]) -> None:
        absent = [name for name, file in index.items() if name not in self._entries or self._entries[name].shard != file]
        if absent:
            raise base_error(
                f"{len(absent)} tensors of the base model are not in the file that {INDEX_FILE} names, the first is {absent[0]}",
                where=str(self.folder / index[absent[0]]),
                hint="copy or download that file again",
            )


def _read(shard: Path, entry: Entry) -> Tensor:
    """A tensor's bytes, [end - start] uint8. OSError where the file ends before them."""
    held = torch.empty(entry.end - entry.start, dtype=torch.uint8)
    wanted = held.numpy().data
    with shard.open("rb", buffering=0) as file:
        file.seek(entry.start)
        while wanted and (count := file.readinto(wanted)):
            wanted = wanted[count:]
    if wanted:
        raise OSError(f"the file ends {len(wanted)} bytes early")
    return held


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _read_header(shard: Path) -> dict[str, Entry]:
    """The header, after safetensors itself has opened the file and found it whole."""

    def read() -> dict[str, Entry]:
        with safe_open(shard, framework="pt"):
            pass
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        first = 8 + length
        return {
            name: Entry(shard.name, tuple(one["shape"]), one["dtype"], first + one["data_offsets"][0], first + one["data_offsets"][1])
            for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
        }

    return _guarded(shard, read)


def _guarded(shard: Path, read: Callable[[], Read]) -> Read:
    try:
        return read()
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise base_error(
            f"the base model's weight file {shard.name} is damaged or cut short",
            where=str(shard),
            why=f"{type(error).__name__}: {str(error)[:200]}",
            hint="copy or download that file again, and compare its size with the source's",
        ) from None
