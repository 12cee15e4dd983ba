"""What attack tests share: a judge for each layer that works here, and programs that report what they achieved."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from soka_cli.sandbox.verdict import Program, Verdict
from soka_cli.sandbox.worker import Worker

Judge = Callable[..., Verdict]
RIGHT = "assert f(1) == 2"


def judge_with(worker: Worker) -> Judge:
    """`judge(code, *tests, setup="", timeout=10.0)`, the code's indentation taken off."""

    def judge(code: str, *tests: str, setup: str = "", timeout: float = 10.0) -> Verdict:
        return worker.judge(Program(textwrap.dedent(code), tuple(tests) or (RIGHT,), setup, timeout))

    return judge


def achieved(judge: Judge, steps: str, *, timeout: float = 10.0) -> str:
    """What a program reports that runs `steps`: the value of `result`, or the class of the exception that stopped it."""
    code = "def f():\n    try:\n" + textwrap.indent(textwrap.dedent(steps), " " * 8) + "\n        return str(result)\n"
    code += "    except BaseException as error:\n        return type(error).__name__\n"
    verdict = judge(code, "value = f()\nassert value is None, value", timeout=timeout)
    assert verdict.verdict == "fail" and verdict.mode == "separate", verdict
    return verdict.why.rpartition(": ")[2]


def refused(judge: Judge, steps: str, *also: str, timeout: float = 10.0) -> bool:
    """Whether `steps` were stopped by the system: by an OSError of some kind, or one of the class names in `also`."""
    found = achieved(judge, steps, timeout=timeout)
    kinds: Sequence[str] = [kind.__name__ for kind in (OSError, *OSError.__subclasses__())]
    assert found in kinds or found in also, f"the program got as far as {found}"
    return True


def open_to_all(folder: Path) -> None:
    """Let any user into a folder of pytest's, which it keeps to its own, and write there: only the sandbox is to keep a program off."""
    for one in (folder, *folder.parents):
        if "pytest" in one.name or "pytest" in str(one.parent):
            one.chmod(0o777)


def from_libc(call: str) -> str:
    """Steps that make one call of the C library's, `libc.mount(...)`, and raise its error."""
    return (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"result = {call}\nif result < 0: raise OSError(ctypes.get_errno(), 'refused')"
    )
