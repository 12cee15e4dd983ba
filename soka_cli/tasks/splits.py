"""Splits of benchmarks that come as one file: which rows belong to which follows from their ids."""

from collections.abc import Mapping
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.mbpp import SPLITS as MBPP_SPLITS

SPLITS: dict[str, dict[str, range]] = {"mbpp": MBPP_SPLITS}
EVERY = "all"


def belongs(row: Mapping[str, Any], task: str | None, split: str) -> bool:
    """Whether a file's row is of the split; every row of a task without such splits is, and of split all.

    Raises:
        SokaError: exit 4 for a split that the benchmark does not have, or a row without an id.
    """
    if task not in SPLITS or split == EVERY:
        return True
    if split not in SPLITS[task]:
        raise SokaError(
            f"{task} has no split {split}.",
            where=f"split: {split}",
            hint=f"use {', '.join(SPLITS[task])}, or {EVERY} for every row of the file",
            exit_code=ExitCode.DATA,
        )
    identity = row.get("task_id")
    if not isinstance(identity, int | str) or not str(identity).isdecimal():
        raise SokaError(
            f"A row has no number in field task_id, from which its split of {task} follows.",
            where=f"split {split}; the row has {', '.join(map(str, row))}",
            hint=f"give each row its task_id, or set split: {EVERY}",
            exit_code=ExitCode.DATA,
        )
    return int(identity) in SPLITS[task][split]
