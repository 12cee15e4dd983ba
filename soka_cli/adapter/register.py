"""Makes PEFT know SoKA. Runs once, when `soka_cli.adapter` is imported."""

import warnings

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from soka_cli.adapter.config import SOKA, SokaConfig
from soka_cli.adapter.model import SokaModel


def register() -> None:
    """Write SoKA into PEFT's tables of methods; a second call changes nothing.

    PEFT's own `register_peft_method` takes only members of its closed enum, and there are no entry points.
    """
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(SOKA)
    if present is not None and present is not SokaConfig:
        warnings.warn(f"PEFT has a method {SOKA.value} of its own ({present.__module__}); soka's takes its place here.", stacklevel=2)
    PEFT_TYPE_TO_CONFIG_MAPPING[SOKA] = SokaConfig
    PEFT_TYPE_TO_TUNER_MAPPING[SOKA] = SokaModel
    PEFT_TYPE_TO_PREFIX_MAPPING[SOKA] = SokaModel.prefix
