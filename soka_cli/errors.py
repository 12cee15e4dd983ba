"""The one error that users see, and the exit codes that it carries. Imports nothing of ours."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb; scripts rely on them."""

    DONE = 0
    BUG = 1
    USAGE = 2  # command line or recipe
    ENVIRONMENT = 3  # device, package, offline, gated or missing model
    DATA = 4  # missing file or column, empty split
    RUN = 5  # run directory: stale, locked, corrupt, wrong order
    RESOURCES = 6  # out of memory or disk
    TRAINING = 7  # diverged, or nothing to learn
    CHECK = 8  # a check of our own failed (parity, read-back)
    SWEEP = 9  # some runs of a sweep failed
    INTERRUPTED = 130
    TERMINATED = 143


class SokaError(Exception):
    """A failure that the user can act on.

    Args:
        what: what went wrong, one sentence.
        where: the file and line, module, tensor, step or field.
        why: the cause, if known.
        hint: what to try, a command where there is one.
        exit_code: the process's exit status.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "", exit_code: ExitCode) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint
        self.exit_code = exit_code

    def parts(self) -> dict[str, str]:
        """The parts that are set, in the order in which they are shown."""
        named = {"what": self.what, "where": self.where, "why": self.why, "try": self.hint}
        return {name: text for name, text in named.items() if text}

    def __str__(self) -> str:
        return "\n".join(text if name == "what" else f"{name}: {text}" for name, text in self.parts().items())
