"""The base model and its tokenizer, loaded for training, answering or comparing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import Checkpoint, base_error
from soka_cli.models.device import pick_device as pick_device
from soka_cli.models.offload import Placement, refuse_packed
from soka_cli.models.quantised import Quantization, is_packed, loading_options, settle
from soka_cli.models.skeleton import model_class, read_config
from soka_cli.models.snapshot import snapshot
from soka_cli.recipe.schema import MaxMemorySection, ModelSection
from soka_cli.run.digest import file_digest, json_digest

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")


def load_tokenizer(section: ModelSection, *, offline: bool = False) -> PreTrainedTokenizerBase:
    """The base model's tokenizer. Where it has no pad token (Llama 2), padding is EOS: the vocabulary stays as it is,
    so whoever pads hands over an attention mask and labels of its own instead of reading them off the pad id. An encoder's
    tokenizer, which has no EOS, ends a text with its separator.

    Raises:
        SokaError: exit 3, where it cannot be loaded, or has no token that could end an answer.
    """
    folder = snapshot(section.name, revision=section.revision, offline=offline, weights=False)
    tokenizer = read_tokenizer(folder, trust=section.trust_remote_code)
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise base_error(
            "the base model's tokenizer has no EOS token, so no answer could end",
            where=str(folder / "tokenizer_config.json"),
            hint='name it in tokenizer_config.json: "eos_token": "</s>"',
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_tokenizer(folder: Path, *, trust: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder as it is; an encoder's has no EOS token. Exit 3 where it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise base_error(
            "the base model's tokenizer cannot be loaded",
            where=str(folder),
            why=f"{type(error).__name__}: {str(error).strip()[:300]}",
            hint="copy tokenizer.json and tokenizer_config.json (or tokenizer.model) from the model's source into the folder",
        ) from None


def tokenizer_digest(section: ModelSection, *, offline: bool = False) -> str:
    """sha256 over the files that make the base's tokenizer, wherever they lie."""
    folder = snapshot(section.name, revision=section.revision, offline=offline, weights=False)
    return json_digest({path.name: file_digest(path) for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern))})


def load_base(section: ModelSection, *, device: str = "cpu", offline: bool = False) -> PreTrainedModel:
    """The base model in the recipe's dtype and packing on `device` (a name from pick_device), in evaluation mode; under `max_memory` as
    much of it as that allows.

    Raises:
        SokaError: exit 3, where the model cannot be had, its files do not fit config.json, or bitsandbytes is missing; exit 6, where
            it does not fit into memory.
    """
    folder = snapshot(section.name, revision=section.revision, offline=offline)
    return load_folder(
        folder,
        dtype=section.dtype,
        device=device,
        quantization=section.quantization,
        trust=section.trust_remote_code,
        max_memory=section.max_memory,
    )


def load_folder(
    folder: Path,
    *,
    dtype: str,
    device: str = "cpu",
    quantization: Quantization = "none",
    trust: bool = False,
    max_memory: MaxMemorySection | None = None,
) -> PreTrainedModel:
    """The same for a folder at hand, such as a merged model. Weights that lie there packed stay so; `trust` runs its own code."""
    Checkpoint(folder)  # a damaged file is named here; torch and safetensors would only say that something is wrong
    config, computed = read_config(folder, trust=trust), getattr(torch, dtype)
    chosen = model_class(config, folder, trust=trust)
    placement = None
    if max_memory is None:
        options = loading_options(config, folder, quantization, computed, device)
    else:
        refuse_packed(config, str(folder / "config.json"))
        placement = Placement(max_memory, device)
        options = placement.options
    try:
        with _own_progress_only():
            model, report = chosen.from_pretrained(
                folder, dtype=computed, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
        _refuse_mismatch(folder, report)
        if placement is not None:
            model = placement.settle(model)
        elif is_packed(model):
            settle(model, computed)
        else:
            model = model.to(device)
    except torch.OutOfMemoryError as error:
        raise SokaError(
            f"the base model does not fit into the memory of {device}",
            where=str(folder),
            why=str(error).splitlines()[0],
            hint="free the device's memory, or use --device cpu",
            exit_code=ExitCode.RESOURCES,
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise base_error(
            "the base model cannot be loaded",
            where=str(folder),
            why=f"{type(error).__name__}: {str(error).strip()[:300]}",
            hint="copy or download the folder again; `soka doctor` checks the packages",
        ) from None
    _settle_padding(model)
    return model.eval()


@contextmanager
def _own_progress_only() -> Iterator[None]:
    """transformers' loading bar would write across the stage's own progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_mismatch(folder: Path, report: dict[str, Any]) -> None:
    """transformers fills a parameter that the files lack with random numbers and only logs it."""
    missing = sorted(report.get("missing_keys") or ())
    resized = sorted(str(one) for one in report.get("mismatched_keys") or ())
    if missing or resized:
        raise base_error(
            f"the base model's files do not fit its config.json: {len(missing)} parameters have no tensor, {len(resized)} another size",
            where=str(folder),
            why=f"the first is {(missing or resized)[0]}",
            hint="take config.json and all weight files from one source",
        )


def _settle_padding(model: PreTrainedModel) -> None:
    """Generation pads with EOS where the model has no pad token, without the warning at each call."""
    generation = getattr(model, "generation_config", None)
    if generation is None or generation.pad_token_id is not None:
        return
    eos = generation.eos_token_id if generation.eos_token_id is not None else model.config.eos_token_id
    generation.pad_token_id = eos[0] if isinstance(eos, list) else eos
