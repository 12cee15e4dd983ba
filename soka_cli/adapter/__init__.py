"""SoKA as a PEFT method. Importing this package registers it with PEFT; nothing else does."""

from soka_cli.adapter.config import MethodName, SokaConfig
from soka_cli.adapter.factors import FactorFile, attach_factors, weight_digest, write_factors
from soka_cli.adapter.layer import Linear, SokaLayer
from soka_cli.adapter.model import SokaModel, targeted_modules
from soka_cli.adapter.register import add_method, register

register()

__all__ = [
    "FactorFile",
    "Linear",
    "MethodName",
    "SokaConfig",
    "SokaLayer",
    "SokaModel",
    "add_method",
    "attach_factors",
    "register",
    "targeted_modules",
    "weight_digest",
    "write_factors",
]
