"""Where modules' weights lie in a checkpoint, and how they are read: as they are, split off or joined, or unpacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from soka_cli.errors import SokaError
from soka_cli.kron import first_non_finite
from soka_cli.models.checkpoint import Checkpoint, base_error
from soka_cli.models.conversion import MISFITS, Conversion
from soka_cli.models.packed import packing, unpacked
from soka_cli.models.skeleton import Target

UNQUANTISED = "take the model's unquantised weights (float32, bfloat16 or float16)"


@dataclass(frozen=True)
class StoredWeight:
    """One module's weight in a checkpoint.

    Attributes:
        target: the module.
        checkpoint: the files.
        tensors: what is read for it; the first is the weight, or the tensor that it is part of.
    """

    target: Target
    checkpoint: Checkpoint
    tensors: tuple[str, ...]

    @property
    def stored_as(self) -> str:
        """The type of the weight in the files, e.g. bfloat16, or how it is packed there, e.g. nf4."""
        return str(self.checkpoint.dtype(self.tensors[0])).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """What is read for it, in bytes."""
        return sum(self.checkpoint.nbytes(name) for name in self.tensors)

    @property
    def where(self) -> str:
        """The tensor and its file, for messages."""
        name = self.tensors[0]
        return f"tensor {name} in {self.checkpoint.folder / self.checkpoint.entry(name).shard}"

    def read(self) -> Tensor:
        """The weight as the model's layer holds it: [out, in], or [in, out] for Conv1D, in the checkpoint's type.

        Raises:
            SokaError: exit 3, where a file is damaged or a value is not finite (named, with the first bad index).
        """
        return self.finite(self.tensors[0], self.checkpoint.tensor(self.tensors[0]))

    def matrix(self, weight: Tensor) -> Tensor:
        """What `read` gave, as [out, in]."""
        return weight.T if self.target.transposed else weight

    def split(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors as the parameters that the model holds, by name."""
        return {self.target.weight_name: stored[self.tensors[0]]}

    def join(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back, for writing: the same parameters as the tensors that are stored."""
        return {self.tensors[0]: parameters[self.target.weight_name]}

    @property
    def is_plain(self) -> bool:
        """Whether one stored tensor is the weight, as the layer holds it."""
        return True

    @property
    def unwritable(self) -> str:
        """Why other values cannot be written in the weight's place; empty where they can."""
        return ""

    def finite(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor itself. Exit 3 where a value is not finite."""
        index = first_non_finite(tensor)
        if index is None:
            return tensor
        raise base_error(
            f"the weight of {self.target.name} is not finite",
            where=f"tensor {name} in {self.checkpoint.folder / self.checkpoint.entry(name).shard}",
            why=f"{tensor[index].item()} at index {index}",
            hint="the base model's file is damaged or the model diverged; take it again from its source",
        )

    def require_size(self) -> None:
        """Exit 3 where the files hold another size than config.json says."""
        self.refuse_size(self.checkpoint.shape(self.tensors[0]), self.layer_size)

    @property
    def layer_size(self) -> tuple[int, int]:
        """Size of the weight as the layer holds it."""
        size = (self.target.out_features, self.target.in_features)
        return size[::-1] if self.target.transposed else size

    def refuse_size(self, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if found != wanted:
            name = self.tensors[0]
            raise base_error(
                f"tensor {name} of the base model is {found}, and config.json makes it {wanted}",
                where=str(self.checkpoint.folder / self.checkpoint.entry(name).shard),
                hint="config.json and the weights belong to different models, or the weights are packed; take both from one source",
            )


@dataclass(frozen=True)
class ConvertedWeight(StoredWeight):
    """A weight that is stored with others in one tensor, or in several pieces."""

    conversion: Conversion

    def read(self) -> Tensor:
        stored = {name: self.finite(name, self.checkpoint.tensor(name)) for name in self.tensors}
        return self.split(stored)[self.target.weight_name].contiguous()

    def split(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.conversion.forward(stored)

    def join(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.conversion.back(parameters)

    @property
    def is_plain(self) -> bool:
        return False

    @property
    def unwritable(self) -> str:
        if self.conversion.is_invertible({name: self.checkpoint.shape(name) for name in self.tensors}):
            return ""
        return "it is computed from what the files hold, and transformers' rule for that has no way back"

    def require_size(self) -> None:
        sizes = {name: self.checkpoint.shape(name) for name in self.tensors}
        try:
            found = self.conversion.sizes(sizes)[self.target.weight_name]
        except MISFITS as error:
            raise base_error(
                f"the weight of {self.target.name} cannot be made of what the base model stores in its place",
                where=self.where,
                why=f"{', '.join(f'{name} {size}' for name, size in sizes.items())}: {error}",
                hint="config.json and the weights belong to different models; take both from one source",
            ) from None
        self.refuse_size(found, self.layer_size)


@dataclass(frozen=True)
class PackedWeight(StoredWeight):
    """A weight that bitsandbytes packed. It is unpacked to [out, in]: packing turns a Conv1D's round."""

    kind: str

    @property
    def stored_as(self) -> str:
        return self.kind

    def read(self) -> Tensor:
        weight, *beside = (self.checkpoint.tensor(name) for name in self.tensors)
        try:
            values = unpacked(weight, self.kind, dict(zip(self.tensors[1:], beside, strict=True)))
            self.refuse_size(tuple(values.shape), self.layer_size)
        except ValueError as error:
            raise base_error(
                f"the weight of {self.target.name} cannot be unpacked ({self.kind})",
                where=self.where,
                why=str(error),
                hint="copy or download the model's files again",
            ) from None
        return self.finite(self.tensors[0], values)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    @property
    def unwritable(self) -> str:
        return f"it is packed ({self.kind}): what is added would be lost in packing it again"

    @property
    def layer_size(self) -> tuple[int, int]:
        return self.target.out_features, self.target.in_features

    def require_size(self) -> None:
        if self.kind == "int8":
            super().require_size()


def stored_weights(model: PreTrainedModel, checkpoint: Checkpoint, wanted: Sequence[Target]) -> dict[str, StoredWeight]:
    """Module name -> where its weight lies, by the rules that transformers itself loads with; no tensor is read.

    Covers a missing or extra base prefix ("model.", "transformer.", "bert."), renamed checkpoints, tied weights, weights
    stored together with others or in pieces, and weights packed by bitsandbytes.

    Raises:
        SokaError: exit 3, where a weight is absent, packed in another way, or of another size than config.json says.
    """
    plain, converted = _sources(model, checkpoint)
    found: dict[str, StoredWeight] = {}
    for target in wanted:
        names = [name for name in (target.weight_name, target.tied_to or "") if name in plain or name in converted]
        if not names:
            raise _no_weight(model, target, checkpoint)
        weight = _stored(target, checkpoint, plain.get(names[0]), converted.get(names[0]))
        weight.require_size()
        found[target.name] = weight
    return found


def _stored(target: Target, checkpoint: Checkpoint, name: str | None, conversion: Conversion | None) -> StoredWeight:
    if name is None:
        assert conversion is not None
        for one in conversion.stored:
            _require_float(checkpoint, one)
        return ConvertedWeight(target, checkpoint, conversion.stored, conversion)
    if (how := packing(checkpoint, name)) is not None:
        kind, beside = how
        return PackedWeight(target, checkpoint, (name, *beside), kind)
    _require_float(checkpoint, name)
    return StoredWeight(target, checkpoint, (name,))


def _require_float(checkpoint: Checkpoint, name: str) -> None:
    dtype = checkpoint.dtype(name)
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise base_error(
            f"tensor {name} of the base model is {str(dtype).removeprefix('torch.')}, a packed type",
            where=str(checkpoint.folder / checkpoint.entry(name).shard),
            hint=UNQUANTISED,
        )


def _sources(model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[dict[str, str], dict[str, Conversion]]:
    """Parameter name -> stored tensor that is it, and parameter name -> conversion that makes it."""
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    parameters, prefix = model.state_dict(), model.base_model_prefix
    plain: dict[str, str] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(checkpoint.names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if renamed not in parameters and name in parameters:
            renamed, pattern = rename_source_key(name, [], [], prefix, parameters)
        if pattern is None:
            plain[renamed] = name
        else:
            groups.setdefault(renamed, []).append((name, pattern))
    conversions = [Conversion(model, by_pattern[sources[0][1]], first, sources) for first, sources in groups.items()]
    return plain, {name: one for one in conversions for name in one.parameters}


def _no_weight(model: PreTrainedModel, target: Target, checkpoint: Checkpoint) -> SokaError:
    quantisation: Mapping[str, object] = getattr(model.config, "quantization_config", None) or {}
    if quantisation:
        return base_error(
            f"the base model is quantised by {quantisation.get('quant_method', 'a method of its own')}, which soka cannot unpack",
            where=f"{checkpoint.folder}: {target.weight_name}",
            hint=f"{UNQUANTISED}, or ones packed by bitsandbytes",
        )
    return base_error(
        f"the base model's files hold no tensor {target.weight_name}",
        where=str(checkpoint.folder),
        why=f"there are {len(checkpoint.names)} tensors, the first is {next(iter(checkpoint.names), 'none')}",
        hint="take the whole model from its source; a folder with an adapter alone is no base model",
    )
