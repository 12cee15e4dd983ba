"""One thing that the doctor looked at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from soka_cli.errors import SokaError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `fail` keeps a recipe from running here, `warn` may slow or stop it later."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""


def attempt(name: str, look: Callable[[], Any]) -> Any:
    """What `look` finds, or its error as a failed check."""
    try:
        return look()
    except SokaError as error:
        return Check(name, "fail", ": ".join(part for part in (error.what.rstrip("."), error.why) if part), error.hint)
    except ImportError as error:
        return Check(name, "fail", str(error), "make install, or pip install --force-reinstall soka-cli")
