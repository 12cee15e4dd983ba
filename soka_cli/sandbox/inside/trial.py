"""The trusted side: runs the tests, and asks the program's process for each thing that the program defines."""

import builtins
import importlib
import operator
import reprlib
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from .channel import Channel, Message, ProtocolError
from .demands import PACKAGES, Demands
from .peer import EndedError, Peer
from .raised import again, description, sentence
from .remote import Remote
from .values import FACTORIES, Codec, Tag

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


class OneProcessError(Exception):
    """A test hands the program something that cannot cross over, so both have to run in one process."""


class Trial:
    """One program and its tests.

    Args:
        channel: to the program's process, which has run nothing yet.
        job: `code`, `setup`, `tests` (list of texts) and `seconds` of processor time.
    """

    def __init__(self, channel: Channel, job: Message) -> None:
        self.job = job
        self.peer = Peer(channel, self.call_back)
        self.codec = Codec(self.outgoing, self.incoming)
        self.lent: list[Any] = []
        self.stopped: Exception | None = None  # why nothing that follows counts, even if a test swallows it
        self.last = ""

    def verdict(self) -> Message:
        """`verdict` (pass, fail, error for tests that are no Python, again for those that need one process), `why` and `mode`."""
        try:
            demands = Demands(self.job["setup"], self.job["tests"])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return {"verdict": "error", "why": f"the tests are no Python program: {error}"}
        mode = "in-process" if demands.one_process or self.job["mode"] == "in-process" else "separate"
        try:
            found = self.judge(demands) if mode == "separate" else self.prove()
        except OneProcessError:
            found = {"verdict": "again", "why": ""}
        except (ProtocolError, EndedError) as error:
            found = failed(self.ended(error))
        return found | {"mode": mode}

    def prove(self) -> Message:
        """Let the program's process run the tests; it could lie."""
        if (trouble := self.run_program()) is not None:
            return failed(trouble)
        answer = self.peer.ask({"ask": "prove", "tests": self.job["tests"]})
        if "raised" in answer:
            return failed(sentence(answer))
        return {"verdict": "pass", "why": ""}

    def run_program(self) -> str | None:
        """None if the program ran to its end, else what it raised."""
        answer = self.peer.ask({"ask": "run", "code": self.job["code"], "setup": self.job["setup"], "seconds": self.job["seconds"]})
        return f"the program raises {sentence(answer)}" if "raised" in answer else None

    def judge(self, demands: Demands) -> Message:
        """Run the tests here."""
        if (trouble := self.run_program()) is not None:
            return failed(trouble)
        space = {"__name__": "tests", "__builtins__": builtins, **self.program_names(demands)}
        for text in (self.job["setup"], *self.job["tests"]):
            try:
                exec(compile(text, "<test>", "exec"), space)
            except (OneProcessError, ProtocolError, EndedError):
                raise
            except AssertionError as error:
                return failed(self.false(text, error))
            except BaseException as error:
                return failed(f"{short(text)} raises {sentence(description(error))}{self.last}")
            if self.stopped is not None:
                raise self.stopped
        return {"verdict": "pass", "why": ""}

    def program_names(self, demands: Demands) -> dict[str, Any]:
        """What the tests may take from the program: what they ask for, and in place of its modules our own."""
        answer = self.peer.ask({"ask": "names", "names": sorted(demands.names)})
        told, found = answer.get("value"), {}
        if not isinstance(told, dict) or not told.keys() <= demands.names:
            raise ProtocolError("names that were not asked for")
        for name, data in told.items():
            if isinstance(data, dict) and "module" in data:
                if trusted(data["module"], name):
                    found[name] = importlib.import_module(data["module"])
            elif name not in demands.modules:
                found[name] = self.codec.decode(data)
        return found

    def operate(self, asked: str, target: Remote, *arguments: Any, **keywords: Any) -> Any:
        """Have one operation done on an object of the program's."""
        if self.stopped is not None:
            raise self.stopped
        try:
            question: Message = {"ask": asked, "target": target._number, "arguments": [self.codec.encode(one) for one in arguments]}
            if keywords:
                question["keywords"] = {key: self.codec.encode(one) for key, one in keywords.items()}
            answer = self.peer.ask(question)
            if "raised" in answer:
                self.last = f"; the program raised {sentence(answer)}"
                raise again(answer, iterating=asked == "next")
            for argument, data in zip(arguments, answer.get("after") or (), strict=False):
                if data is not None:
                    become(argument, self.codec.decode(data))
            value = self.codec.decode(answer["value"])
        except (OneProcessError, ProtocolError, EndedError) as error:
            self.stopped = error
            raise
        except KeyError as error:
            self.stopped = ProtocolError(f"an answer without {error}")
            raise self.stopped from error
        if asked == "call" and not isinstance(value, Remote):
            self.last = f"; the program returned {shown(value)}"
        return value

    def call_back(self, question: Message) -> Message:
        """The program calls something that a test gave it."""
        try:
            called = self.lent[question["target"]]
            arguments = [self.codec.decode(data) for data in question["arguments"]]
            keywords = {key: self.codec.decode(data) for key, data in question["keywords"].items()}
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ProtocolError("a call of nothing") from error
        try:
            return {"value": self.codec.encode(called(*arguments, **keywords))}
        except (OneProcessError, ProtocolError, EndedError):
            raise
        except Exception as error:
            return description(error)

    def outgoing(self, value: Any) -> Tag:
        """An object of the program's goes back by its number, a callable of the tests' is lent; anything else cannot go."""
        if type(value) is Remote:
            return {"object": value._number}
        if not callable(value) or value is Remote:
            raise OneProcessError
        self.lent.append(value)
        return {"callable": [len(self.lent) - 1, *home(value)]}

    def incoming(self, tag: str, content: Any) -> Any:
        if tag == "object" and type(content) is int:
            return Remote(self, content)
        if tag == "type":
            return FACTORIES[content]
        if tag == "callable":
            return self.lent[content[0]]
        raise ProtocolError("a value of no known kind")

    def false(self, text: str, error: AssertionError) -> str:
        return f"{short(text)} does not hold{self.last}" + (f": {str(error)[:200]}" if str(error) else "")

    def ended(self, error: Exception) -> str:
        return "the program's process ended" if isinstance(error, EndedError) else f"the program's process sent {error}"


def shown(value: Any) -> str:
    """A value in a few characters, for people."""
    try:
        return SHORT.repr(value)
    except ValueError:  # more digits than Python writes
        return "a very long number"


def failed(why: str) -> Message:
    return {"verdict": "fail", "why": why}


def short(text: str) -> str:
    """A test on one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:117]}..."


def trusted(module: Any, name: str) -> bool:
    """Whether a module that the program calls `name` may be imported here: ours, and none under another's name."""
    ours = module in PACKAGES or module in sys.stdlib_module_names
    return ours and (module == name or name not in sys.stdlib_module_names)


def home(value: Any) -> tuple[str | None, str | None]:
    """Module and name under which the other side finds the same function or class; (None, None) for one of the tests' own."""
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str) or module not in {*sys.stdlib_module_names, *PACKAGES}:
        return None, None
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return (module, path) if found is value else (None, None)


def become(old: Any, new: Any) -> Any:
    """Make a mutable argument what the program made of it, in place as far as its type allows; returns what stands for it now."""
    if type(old) is not type(new):
        return new
    if isinstance(old, list):
        old[:] = [*map(become, old, new), *new[len(old) :]]
    elif isinstance(old, tuple):
        return old if len(old) == len(new) and all(map(operator.is_, old, map(become, old, new))) else new
    elif isinstance(old, bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)
    else:
        return new
    return old


def try_program(channel: Channel, job: Mapping[str, Any]) -> Message:
    """The verdict on one job."""
    return Trial(channel, dict(job)).verdict()
