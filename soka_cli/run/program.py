"""The program that is running: soka's own, or somebody's that brings something along and then does what soka does."""

import os
from pathlib import Path

VARIABLE = "SOKA_PROGRAM"


def become(file: str) -> None:
    """Processes that are started from here run `file`, too."""
    os.environ[VARIABLE] = str(Path(file).resolve())


def program_words() -> tuple[str, ...]:
    """The words between the interpreter and a verb."""
    own = os.environ.get(VARIABLE)
    return (own,) if own else ("-m", "soka_cli")
