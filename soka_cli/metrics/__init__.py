"""The benchmarks' metrics as modules of Hugging Face's `evaluate`, for programs of others. soka itself calls the functions beneath.

`evaluate.load(str(module_folder("gsm8k")))` works as for any local module; `load("gsm8k")` does the same without touching the
user's cache, which a read-only or shared home makes hang.
"""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError

FOLDER = Path(__file__).resolve().parent
COPIES = "evaluate_modules"  # the package that `evaluate` copies scripts into


def module_names() -> list[str]:
    """Names of the packaged modules."""
    return sorted(path.parent.name for path in FOLDER.glob("*/*.py") if path.stem == path.parent.name)


def module_folder(name: str) -> Path:
    """The folder that `evaluate.load` takes; SokaError exit 2 listing those that are there."""
    if name not in (there := module_names()):
        raise SokaError(f"There is no metric module {name}.", where=str(FOLDER), hint=f"use {' or '.join(there)}", exit_code=ExitCode.USAGE)
    return FOLDER / name


def load(name: str) -> Any:
    """The module `name` as `evaluate.load` gives it, its copies and tables in a folder of this process's own; the Hub is not asked."""
    import evaluate

    with _own_modules(evaluate.config, _private() / "modules"):
        return evaluate.load(str(module_folder(name)), cache_dir=str(_private() / "metrics"))


@contextmanager
def _own_modules(config: Any, folder: Path) -> Iterator[None]:
    """`folder` in the place of the cache that `evaluate` imports its copies from, which it can have only one of at a time."""
    before, paths = config.HF_MODULES_CACHE, list(sys.path)
    users = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == COPIES}
    config.HF_MODULES_CACHE = folder
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        config.HF_MODULES_CACHE, sys.path[:] = before, paths
        for name in [name for name in sys.modules if name.split(".")[0] == COPIES]:
            del sys.modules[name]
        sys.modules.update(users)


@cache
def _private() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="soka-metrics-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
