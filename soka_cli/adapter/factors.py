"""Factor files: the terms that adapters start from, written once by `decompose` and attached without decomposing again."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from soka_cli.adapter.config import SokaConfig
from soka_cli.adapter.layer import SokaLayer, layer_sizes
from soka_cli.adapter.model import targeted_modules
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors
from soka_cli.run.write import atomic_file

FORMAT = "soka-factors"
VERSION = "1"
PARTS = ("U", "V", "sigma")
REDO = "decompose this base again: soka decompose --force"


def weight_digest(weight: Tensor) -> str:
    """sha256 of a weight's values rounded to bfloat16, row by row as the layer holds it.

    So a checkpoint in fp32, bf16 or fp16 and the same weight loaded as fp32 or bf16 agree. (A fp32 checkpoint loaded as
    fp16 is rounded twice and does not.)
    """
    rounded = weight.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
    return hashlib.sha256(rounded.view(torch.uint8).numpy().data).hexdigest()


def write_factors(path: Path, modules: Mapping[str, KronFactors], digests: Mapping[str, str], *, base: str) -> None:
    """Write `<module>.U` [r, m, n], `<module>.V` [r, p, q], `<module>.sigma` [r], fp32; whole or not at all.

    Args:
        path: the safetensors file.
        modules: terms by module name in the transformers model, those that have any.
        digests: `weight_digest` of each module's weight, of those without terms too.
        base: what the base is called, for messages.

    Raises:
        SokaError: the disk is full (exit 6).
    """
    tensors = {
        f"{name}.{part}": tensor.detach().to("cpu", torch.float32).contiguous().clone()
        for name, factors in modules.items()
        for part, tensor in zip(PARTS, (factors.left, factors.right, factors.sigma), strict=True)
    }
    without = [name for name in digests if name not in modules]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "base": base,
        "digests": json.dumps(dict(digests)),
        "without_terms": json.dumps(without),
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_file(path, needed=size) as staged:
        save_file(tensors, staged, metadata=metadata)
        _order_metadata(staged)


def _order_metadata(path: Path) -> None:
    """Sort the header's metadata, whose order safetensors takes from a hash that differs from process to process: the same terms
    give the same file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


@dataclass(frozen=True)
class FactorFile:
    """A factor file's content: terms and weight digests by module name, what the base was called, and the targets that got no term."""

    path: Path
    modules: dict[str, KronFactors]
    digests: dict[str, str]
    base: str
    without_terms: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "FactorFile":
        """Read a factor file whole.

        Raises:
            SokaError: missing, damaged, of another format or version (exit 5), naming the file.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as handle:
                metadata = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, str(error)) from error
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            raise _unreadable(path, f"its format is {metadata.get('format')} {metadata.get('version')}, expected {FORMAT} {VERSION}")
        try:
            digests = dict(json.loads(metadata["digests"]))
            without_terms = tuple(json.loads(metadata.get("without_terms", "[]")))
            modules = _grouped(tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        if digests.keys() != {*modules, *without_terms}:
            raise _unreadable(path, "its digests and its tensors name different modules")
        return cls(path, modules, digests, metadata.get("base", ""), without_terms)


def attach_factors(model: nn.Module, config: SokaConfig, path: Path, adapter_name: str = "default") -> PeftModel:
    """Put a SoKA adapter on a base model that starts from a factor file; nothing is decomposed.

    Ranks and shapes come from the file and are written into the config, which leaves out the modules that the file gives no term.
    The digest of a quantised weight is not compared.

    Args:
        model: the base model; untouched if the file is refused.
        config: which modules; `init_weights` must be True.
        path: the factor file.
        adapter_name: the adapter's name.

    Raises:
        SokaError: the file is unreadable, or its modules, sizes or weights are not this base's (exit 5; all differences).
    """
    file = FactorFile.read(path)
    targets = targeted_modules(model, config)
    if lines := list(_differences(file, targets)):
        raise SokaError(
            "The factor file does not fit this base model.",
            where=str(path),
            why="\n".join(lines),
            hint=REDO,
            exit_code=ExitCode.RUN,
        )
    for name, factors in file.modules.items():
        config.record(name, factors.shape, factors.rank)
    config.leave_out(file.without_terms)
    attached = get_peft_model(model, config, adapter_name=adapter_name, low_cpu_mem_usage=True)
    for name, layer in attached.base_model.model.named_modules():
        if isinstance(layer, SokaLayer):
            layer.start_from(adapter_name, config, file.modules[name])
    return attached


def _unreadable(path: Path, why: str) -> SokaError:
    return SokaError(f"The factor file {path.name} cannot be read.", where=str(path), why=why, hint=REDO, exit_code=ExitCode.RUN)


def _grouped(tensors: dict[str, Tensor]) -> dict[str, KronFactors]:
    """Terms by module; ValueError names a tensor that is missing, foreign, of another type, misshapen or not finite."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part not in PARTS or tensor.dtype != torch.float32:
            raise ValueError(f"it holds {name} of type {tensor.dtype}; expected <module>.U, .V and .sigma in fp32")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds a value that is not finite")
        parts.setdefault(module, {})[part] = tensor
    for module, held in parts.items():
        if missing := [part for part in PARTS if part not in held]:
            raise ValueError(f"{module} lacks {', '.join(missing)}")
    try:
        return {module: KronFactors(held["U"], held["V"], held["sigma"]) for module, held in parts.items()}
    except ValueError as error:
        raise ValueError(f"a module's tensors: {error}") from error


def _differences(file: FactorFile, targets: dict[str, nn.Module]) -> Iterator[str]:
    for name in sorted(file.digests.keys() - targets.keys()):
        yield f"{name}: in the file, not a target in the model"
    for name in sorted(targets.keys() - file.digests.keys()):
        yield f"{name}: a target in the model, not in the file"
    for name in sorted(targets.keys() & file.digests.keys()):
        shape = file.modules[name].shape if name in file.modules else None
        try:
            out_features, in_features = layer_sizes(targets[name])
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        if shape is not None and (shape.out_features, shape.in_features) != (out_features, in_features):
            yield f"{name}: factors of {shape} for {shape.out_features} x {shape.in_features}, weight of {out_features} x {in_features}"
        elif (weight := _plain_weight(targets[name])) is not None and weight_digest(weight) != file.digests[name]:
            yield f"{name}: sha256 of the weight is {weight_digest(weight)[:12]}, the file was made from {file.digests[name][:12]}"


def _plain_weight(module: nn.Module) -> Tensor | None:
    """The weight, where it holds the checkpoint's own values: not packed and not on the meta device. Packed bits may be held
    in a floating type (bitsandbytes' quant_storage)."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point() or hasattr(weight, "quant_state"):
        return None
    return weight
