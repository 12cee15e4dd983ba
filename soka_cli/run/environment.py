"""What a stage ran on, for env/<stage>.json. Environment variables are not read: they hold secrets."""

import os
import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from soka_cli import __version__

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "safetensors",
    "tokenizers",
    "numpy",
    "pydantic",
    "bitsandbytes",
)


@cache
def package_version(name: str) -> str | None:
    """The installed version of a distribution, None if it is absent. Nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    return {name: package_version(name) for name in names}


def memory_bytes() -> int:
    """Bytes of main memory in the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processors() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Versions and machine as plain JSON values; `extra` (device, seeds) is added under its own keys."""
    return {
        "soka": __version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": processors(),
        "memory_bytes": memory_bytes(),
        "packages": package_versions(),
        **(extra or {}),
    }
