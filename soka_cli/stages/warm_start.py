"""`train.init_from`: an adapter that training begins with, in place of a fresh one."""

from collections.abc import Iterator
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.digest import file_digest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NO_PART_OF_THE_FUNCTION = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "auto_mapping",
    "target_modules",  # the tensors' names say which modules there are, and their shapes how large
    "exclude_modules",
    "rank",
    "rank_pattern",
    "shape",
    "shape_pattern",
    "r",
    "init",
    "init_weights",
    "init_lora_weights",
    "sigma",
    "seed",
    "saved",
    "lora_dropout",
    "rank_dropout",
    "module_dropout",
}
MOST_LINES = 20


def adapter_digest(folder: Path) -> str:
    """sha256 of the adapter's weights, which stands for the folder among a stage's inputs. Exit 2 where there is none."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise _refused(
                folder, "it holds no adapter", f"there is no {name}", "name the folder of an adapter, e.g. runs/first/train/adapter"
            )
    return file_digest(folder / WEIGHTS)


def warm_start(model: PeftModel, folder: Path) -> None:
    """Give the fresh adapter the values of the one in `folder`, SoKA's theta0 included: the function goes on where that one ended.

    Raises:
        SokaError: exit 2, the two differ in method, modules, shapes or scale; all differences.
    """
    try:
        config, tensors = PeftConfig.from_pretrained(str(folder)), load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _refused(folder, "it cannot be read", f"{type(error).__name__}: {str(error)[:200]}", "restore it from a copy") from None
    lines = list(_differences(config, model.peft_config["default"], tensors, get_peft_model_state_dict(model, save_embedding_layers=False)))
    if lines:
        shown = lines[:MOST_LINES] + ([f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else [])
        raise _refused(
            folder,
            "it does not fit this recipe's adapter",
            "\n".join(shown),
            "give adapter the settings of the run that it comes from (its recipe.yaml), or another train.init_from",
        )
    set_peft_model_state_dict(model, tensors)


def _differences(there: PeftConfig, here: PeftConfig, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> Iterator[str]:
    if there.peft_type != here.peft_type:
        yield f"method {there.peft_type}, and the recipe's is {here.peft_type}"
        return
    old, new = there.to_dict(), here.to_dict()
    for name in sorted(old.keys() & new.keys() - NO_PART_OF_THE_FUNCTION):
        if old[name] != new[name]:
            yield f"{name}: {old[name]}, and the recipe's is {new[name]}"
    for name in sorted(tensors.keys() | wanted.keys()):
        if name not in wanted:
            yield f"{name}: no such tensor in the recipe's adapter"
        elif name not in tensors:
            yield f"{name}: missing there"
        elif tensors[name].shape != wanted[name].shape:
            yield f"{name}: {tuple(tensors[name].shape)}, and the recipe's is {tuple(wanted[name].shape)}"


def _refused(folder: Path, what: str, why: str, hint: str) -> SokaError:
    return SokaError(
        f"Training cannot begin with {folder}: {what}.",
        where="train.init_from",
        why=why,
        hint=hint,
        exit_code=ExitCode.USAGE,
    )
