"""What judging a program comes to."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["separate", "in-process"]


@dataclass(frozen=True)
class Verdict:
    """One program's verdict.

    Attributes:
        verdict: pass, fail, timeout, or error: nothing was judged (no isolation, or tests that are no Python).
        why: what went wrong, for people; may hold words of the program's. Empty for pass.
        mode: where the asserts ran. `separate` is a process that the program cannot reach; `in-process` is the program's own, whose
            word is taken, for tests that need its classes there. None where it did not come to that.
        layer: what isolated the program: bubblewrap, namespaces, landlock or none.
        seconds: from handing the program over to the verdict.
        output: the first characters that the program printed.
    """

    verdict: Literal["pass", "fail", "timeout", "error"]
    why: str = ""
    mode: Mode | None = None
    layer: str = "none"
    seconds: float = 0.0
    output: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"


@dataclass(frozen=True)
class Program:
    """A program and what is asked of it.

    Attributes:
        code: the program.
        tests: Python texts, each of which raises nothing if the program does what it should. They may use what code and setup define.
        setup: runs before the program, or after it where it builds on it. Tests that say a name of it mean the setup's, not one that
            the program gives the same name.
        timeout: seconds of wall clock for all of it.
    """

    code: str
    tests: tuple[str, ...]
    setup: str = ""
    timeout: float = 10.0
