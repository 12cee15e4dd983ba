"""The process that reads model-written LaTeX: one verdict a line, until its input ends. Started by symbolic.py, which kills it.

`parse` builds expressions from a grammar and evaluates no text as Python; what grows or hangs is the parent's to end.
"""

import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 2 << 30  # bytes of address space


def main() -> None:
    """Answer each line of the input with a line `{"equal": bool, "why": text or null}`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no verdict
    for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
    logging.disable(logging.CRITICAL)
    from soka_cli.tasks import sympy_judge

    judges: dict[str, Callable[..., tuple[bool, str | None]]] = {
        "symbolic": sympy_judge.symbolic,
        "math_verify": sympy_judge.math_verify,
        "minerva": sympy_judge.minerva,
    }
    say(answers, {"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        end_after(question["seconds"])
        equal, why = verdict(judges[question["judge"]], question["first"], question["second"])
        say(answers, {"equal": equal, "why": why})


def end_after(seconds: float) -> None:
    """Let the kernel end the process once it has used some seconds more, and one of grace; the parent may be gone by then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def verdict(judge: Callable[..., tuple[bool, str | None]], first: str, second: str) -> tuple[bool, str | None]:
    """The judge's verdict; whatever the libraries raise over a text is a no, with the error's name (its words may be the text's)."""
    try:
        return judge(first, second)
    except Exception as error:
        return False, type(error).__name__


def say(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
