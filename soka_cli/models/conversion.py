"""Weights that a checkpoint keeps in another form than the model: transformers' own conversion, forward and back."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter

# What transformers' operations raise on tensors that they are not made for; there is no type of their own.
MISFITS = (ValueError, RuntimeError, KeyError, AttributeError, TypeError, IndexError, NotImplementedError)


class Conversion:
    """A group of stored tensors and the parameters that transformers makes of them, e.g. qkv_proj -> q_proj, k_proj, v_proj.

    Args:
        model: the model on the meta device; some operations read sizes off it.
        converter: transformers' rule.
        first: the parameter by which transformers names the group.
        sources: (stored tensor, the rule's source pattern that it matched), in the order in which transformers reads them.
    """

    def __init__(self, model: PreTrainedModel, converter: WeightConverter, first: str, sources: Sequence[tuple[str, str]]) -> None:
        self._model = model
        self._converter = converter
        self._first = first
        self._sources = tuple(sources)

    @property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint."""
        return tuple(name for name, _ in self._sources)

    @property
    def parameters(self) -> tuple[str, ...]:
        """What is made of them, by name in the transformers model."""
        first, *_ = patterns = self._converter.target_patterns
        return tuple(self._first.replace(first, pattern) for pattern in patterns)

    def forward(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stored tensors -> parameters. One of MISFITS where the tensors are not what the rule is made for."""
        converter = deepcopy(self._converter)
        for name, pattern in self._sources:
            converter.add_tensor(self._first, name, pattern, stored[name])
        return {name: _single(made) for name, made in self._convert(converter, self._first).items()}

    def back(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters -> stored tensors; one of MISFITS where the rule cannot be turned round."""
        converter = self._converter.reverse_transform()
        renamed = ""
        for name in self.parameters:
            renamed, pattern = converter.rename_source_key(name)
            if pattern is None:
                raise ValueError(f"nothing is made of {name}")
            converter.add_tensor(renamed, name, pattern, parameters[name])
        made = self._convert(converter, renamed)
        first, *_ = patterns = converter.target_patterns
        keys = {source: renamed.replace(first, pattern) for source, pattern in zip(self._converter.source_patterns, patterns, strict=True)}
        return {name: _single(made[keys[pattern]]) for name, pattern in self._sources}

    def _convert(self, converter: WeightConverter, name: str) -> dict[str, Tensor]:
        return converter.convert(name, model=self._model, config=self._model.config)

    def sizes(self, stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Sizes of the parameters from those of the stored tensors, without values. One of MISFITS where they do not fit."""
        made = self.forward({name: torch.empty(size, device="meta") for name, size in stored.items()})
        return {name: tuple(tensor.shape) for name, tensor in made.items()}

    def is_invertible(self, stored: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether forward and back give every entry of tensors of these sizes back to its place: tried on numbered entries."""
        numbered, start = {}, 0
        for name, size in stored.items():
            count = int(torch.Size(size).numel())
            numbered[name] = torch.arange(start, start + count).reshape(size)
            start += count
        try:
            again = self.back(self.forward(numbered))
            return all(torch.equal(again[name], tensor) for name, tensor in numbered.items())
        except MISFITS:
            return False


def _single(made: Tensor | list[Tensor]) -> Tensor:
    return made[0] if isinstance(made, list) else made
