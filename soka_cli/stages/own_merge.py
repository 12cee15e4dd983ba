"""Merging by PEFT's own hand, for methods that do more than add a matrix to a weight: the model is held in memory, in fp32."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import soka_cli.adapter  # noqa: F401 - registers SoKA with PEFT
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_folder
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import refuse_tied, skeleton, target
from soka_cli.models.weights import StoredWeight, stored_weights
from soka_cli.stages.adapter_file import CONFIG
from soka_cli.stages.deltas import BEYOND_MATRICES, refuse_unwritable

MATRICES = ("SOKA", "LORA", "LOKR", "LOHA")  # what each adds to a weight is told by the adapter's files alone


class UnmergeableError(SokaError):
    """The method has no merged form; exit 2."""


def adds_matrices(folder: Path) -> bool:
    """Whether the adapter of `folder` adds a matrix to some weights and does nothing else. One that is damaged is left to its reader."""
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return True
    plain = raw.get("bias", "none") == "none" and not any(raw.get(name) for name in BEYOND_MATRICES)
    return str(raw.get("peft_type")) in MATRICES and plain


class OwnMerge:
    """The base with the adapter of a folder merged into it by PEFT.

    Attributes:
        given: the stored tensors that then differ from the base's, fp32, laid out as they are stored.

    Raises:
        SokaError: exit 5, the adapter does not fit the base; exit 6, no memory; exit 2, the base's files have no place for a changed
            parameter; UnmergeableError, PEFT has no merge for the method.
    """

    def __init__(self, folder: Path, base: Checkpoint, *, trust: bool = False) -> None:
        model = load_folder(base.folder, dtype="float32", trust=trust)
        before = _digests(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                adapted = PeftModel.from_pretrained(model, str(folder))
            except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
                raise _misfit(folder, str(error).strip()[:400]) from None
            try:
                merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
            except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
                raise _unmergeable(folder, adapted.peft_config["default"].peft_type, str(error).strip()[:400]) from None
        changed = [name for name, digest in _digests(merged).items() if before.get(name) != digest]
        self.given = _placed(base, {name: merged.get_parameter(name).detach() for name in changed}, trust)


def _placed(base: Checkpoint, changed: dict[str, Tensor], trust: bool) -> dict[str, Tensor]:
    """Changed parameters as the tensors that the base's files hold in their places."""
    empty = skeleton(base.folder, trust=trust)
    linear = {name: target(empty, name.removesuffix(".weight")) for name in changed if _is_linear(empty, name)}
    refuse_tied(linear.values())
    found = {name: changed[name] for name in changed if name not in linear}
    for name, tensor in found.items():
        if name not in base.names or base.shape(name) != tuple(tensor.shape):
            raise _homeless(base, name)
    held: dict[str, list[StoredWeight]] = {}
    stored = stored_weights(empty, base, list(linear.values())).values()
    refuse_unwritable(stored)
    for weight in stored:
        for name in weight.tensors:
            held.setdefault(name, []).append(weight)
    for name, weights in held.items():
        tensors = {one: base.tensor(one).float() for one in weights[0].tensors}
        parameters = weights[0].split(tensors) | {one.target.weight_name: changed[one.target.weight_name] for one in weights}
        found[name] = weights[0].join(parameters)[name]
    return found


def _is_linear(model: nn.Module, name: str) -> bool:
    module, _, part = name.rpartition(".")
    return part == "weight" and isinstance(model.get_submodule(module), nn.Linear | Conv1D)


def _homeless(base: Checkpoint, name: str) -> SokaError:
    return SokaError(
        f"the adapter cannot be merged into this base: {name} has no place of its own in its files",
        where=str(base.folder),
        why="the files hold it in another form",
        hint="evaluate and serve it as base with adapter: soka eval --model adapter",
        exit_code=ExitCode.USAGE,
    )


def _digests(model: nn.Module) -> dict[str, str]:
    parts = {name: one.detach().contiguous().flatten().view(torch.uint8) for name, one in model.named_parameters()}
    return {name: hashlib.sha256(part.numpy().data).hexdigest() for name, part in parts.items()}


def _misfit(folder: Path, why: str) -> SokaError:
    return SokaError(
        "the adapter cannot be merged into this base model",
        where=str(folder),
        why=why,
        hint="train again on this base (soka train --force), or merge into the base that the adapter was trained on",
        exit_code=ExitCode.RUN,
    )


def _unmergeable(folder: Path, kind: Any, why: str) -> SokaError:
    return UnmergeableError(
        f"PEFT cannot merge an adapter of method {getattr(kind, 'value', kind)} into this base model",
        where=str(folder),
        why=why,
        hint="evaluate and serve it as base with adapter: soka eval --model adapter",
        exit_code=ExitCode.USAGE,
    )
