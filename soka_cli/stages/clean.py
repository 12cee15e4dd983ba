"""Stages that --force set aside: list them, or remove them once the user agreed."""

from soka_cli.run.aside import SetAside, list_set_aside, remove_set_aside
from soka_cli.run.lock import RunLock
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Outcome, Table

MEGABYTE = 10**6


def clean(context: StageContext, *, confirmed: bool = False) -> Outcome:
    """Show what `.old/` holds; with `confirmed` delete it. The asking is the command line's.

    Raises:
        SokaError: exit 5, another process works in the run directory.
    """
    layout = context.layout
    if not layout.set_aside.is_dir():
        return Outcome("clean", "already done", layout.root, {"set_aside": [], "bytes": 0, "removed": False})
    with RunLock(layout.lock, context.command):
        found = remove_set_aside(layout) if confirmed else list_set_aside(layout)
    total = sum(one.bytes for one in found)
    note = f"{total / MEGABYTE:.1f} MB {'removed' if confirmed else 'would be freed; nothing was removed yet'}"
    return Outcome(
        stage="clean",
        status="done" if confirmed else "partial",
        run=layout.root,
        figures={"set_aside": [{"path": str(one.path), "bytes": one.bytes} for one in found], "bytes": total, "removed": confirmed},
        tables=(Table("Removed" if confirmed else "Set aside", ("stage", "bytes"), tuple(row(one) for one in found)),),
        notes=(note,),
        next_commands=() if confirmed else (f"soka clean --run {layout.root} --yes",),
    )


def row(one: SetAside) -> tuple[str, int]:
    return one.path.name, one.bytes
