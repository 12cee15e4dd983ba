"""Makes PEFT know SoKA. Runs once, when `soka_cli.adapter` is imported."""

import warnings
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from soka_cli.adapter.config import SOKA, SokaConfig
from soka_cli.adapter.model import SokaModel


def register() -> None:
    """Write SoKA into PEFT's tables of methods; a second call changes nothing."""
    add_method(SOKA, SokaConfig, SokaModel)


def add_method(name: Any, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Write a method into PEFT's tables, so that PEFT saves and loads it and recipes take it as `config: {peft_type: NAME}`.

    PEFT's own `register_peft_method` takes only members of its closed enum, and there are no entry points.

    Args:
        name: a `MethodName`, which the config has as its `peft_type`.
        config: a dataclass with the method's fields.
        tuner: puts the method's layers into a model; the names of its parameters begin with its `prefix`.
    """
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(name)
    if present is not None and present is not config:
        warnings.warn(f"PEFT has a method {name.value} of its own ({present.__module__}); this one takes its place here.", stacklevel=2)
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = tuner.prefix
