"""The question before an upload: nothing leaves this machine without a yes, said here or by --yes."""

import sys
from dataclasses import replace
from pathlib import Path

import typer

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.outcome import Outcome


def refuse_early(repository: str | None, *, public: bool, yes: bool, offline: bool) -> None:
    """Before anything is written: exit 2 where nobody could answer or the options do not go together, exit 3 offline."""
    if repository is None:
        if public or yes:
            given = "--public" if public else "--yes"
            raise SokaError(
                f"{given} belongs to --push", where=given, hint="name a repository: --push OWNER/NAME", exit_code=ExitCode.USAGE
            )
        return
    from soka_cli.stages.push import require_pushable

    require_pushable(repository, offline=offline)
    if not yes and not sys.stdin.isatty():
        raise SokaError(
            "--push asks before it uploads, and nobody can answer here",
            where="--push",
            why="standard input is no terminal",
            hint=f"--push {repository} --yes",
            exit_code=ExitCode.USAGE,
        )


def push_exported(outcome: Outcome, folder: Path, repository: str, *, public: bool, yes: bool) -> Outcome:
    """Upload after a yes; without one the export stays as it is."""
    from soka_cli.stages.push import prepare, upload

    push = prepare(folder, repository, private=not public)
    if not (yes or typer.confirm(push.question, default=False, err=True)):
        return replace(outcome, figures={**outcome.figures, "pushed": None}, notes=(*outcome.notes, "nothing was uploaded"))
    address = upload(push)
    return replace(outcome, status="done", figures={**outcome.figures, "pushed": address}, notes=(*outcome.notes, f"uploaded to {address}"))
