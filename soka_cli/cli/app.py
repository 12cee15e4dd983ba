"""The command line's core: arguments in, exit code out. Imports no torch, so that --help answers at once."""

import os
import shlex
import sys
from collections.abc import Sequence

from soka_cli.cli.commands import app
from soka_cli.run.program import become

LIBRARY_SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "THP_MEM_ALLOC_ENABLE": "1",  # PyTorch asks for huge pages: large tensors come with far fewer page faults
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `soka`; None takes the process's own.

    Returns:
        The exit code of the contract (soka_cli.errors.ExitCode).
    """
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=words, prog_name="soka", obj=shlex.join(["soka", *words]))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run_and_exit(program: str | None = None) -> None:
    """Entry point of the `soka` script, and of a program of one's own that brings something along.

    Args:
        program: the file of such a program; processes that soka starts run it, too.
    """
    if program is not None:
        become(program)
    sys.exit(main())
