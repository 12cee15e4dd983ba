"""Writing a safetensors file like another one: the same tensors in the same order, some of them in another type."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from soka_cli.models.checkpoint import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # bytes that a header is padded to


def shard_header(shard: Path, types: Mapping[str, torch.dtype]) -> bytes:
    """The length and header of a copy of `shard` whose tensors have these types; byte for byte the same where none changes.

    Args:
        types: of every tensor in the shard.
    """
    with shard.open("rb") as file:
        length = file.read(8)
        raw = file.read(int.from_bytes(length, "little"))
    header = json.loads(raw)
    tensors = {name: one for name, one in header.items() if name != "__metadata__"}
    if all(NAMES[types[name]] == one["dtype"] for name, one in tensors.items()):
        return length + raw
    at = 0
    for name, one in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"][0]):
        size = torch.Size(one["shape"]).numel() * types[name].itemsize
        one["dtype"], one["data_offsets"] = NAMES[types[name]], [at, at + size]
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
