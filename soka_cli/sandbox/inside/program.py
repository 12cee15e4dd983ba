"""The model's side: runs its program and answers for it. Whatever it answers is a claim that the other side weighs."""

import contextlib
import importlib
import operator
import resource
import sys
from collections.abc import Callable
from typing import Any

from .channel import Channel, Message
from .peer import Peer
from .raised import again, description
from .values import FACTORIES, Codec, Tag

NAME = "program"  # not __main__: a guarded main block does not run, as in the harnesses

# How to read the built-in value under a subclass's own methods.
UNDER: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (complex, lambda value: complex.__add__(value, 0)),
    (str, str.__str__),
    (bytes, bytes.__bytes__),
    (list, lambda value: list.__getitem__(value, slice(None))),
    (tuple, lambda value: tuple.__getitem__(value, slice(None))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: {*set.__iter__(value)}),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments, **keywords: target(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "format": format,
    "int": int,
    "float": float,
    "index": operator.index,
    "eq": operator.eq,
    "isinstance": lambda kind, value: isinstance(value, kind),
    "enter": lambda target: type(target).__enter__(target),
    "exit": lambda target: type(target).__exit__(target, None, None, None),
}


class Program:
    """Serves one program over a channel until the other side ends."""

    def __init__(self, channel: Channel) -> None:
        self.peer = Peer(channel, self.serve)
        self.codec = Codec(self.outgoing, self.incoming)
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # id(object) -> its place in `objects`, which keeps it alive
        self.lent: dict[int, tuple[Any, Tag]] = {}  # id(object) -> an object of the other side's and its tag
        self.module = type(sys)(NAME)
        sys.modules[NAME] = self.module

    def serve(self, question: Message) -> Message:
        """The answer to one question; an exception is an answer too."""
        try:
            return self.answer(question)
        except BaseException as error:
            return description(error)
        finally:
            flush()

    def answer(self, question: Message) -> Message:
        asked = question["ask"]
        if asked == "run":
            self.run(question["code"], question["setup"], question["seconds"])
            return {"value": None}
        if asked == "names":
            return {"value": self.names(question["names"])}
        if asked == "prove":
            return self.prove(question["tests"])
        return self.operate(asked, question)

    def run(self, code: str, setup: str, seconds: int) -> None:
        """The setup, then the program; the setup comes after it where it builds on the program."""
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        bound = seconds if hard == resource.RLIM_INFINITY else min(seconds, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (bound, bound))
        space, late = self.module.__dict__, False
        try:
            exec(compile(setup, "<setup>", "exec"), space)
        except Exception:
            late = True
        exec(compile(code, "<program>", "exec"), space)
        if late:
            exec(compile(setup, "<setup>", "exec"), space)

    def names(self, names: list[str]) -> dict[str, Any]:
        """Those of `names` that the program has; a module by its name."""
        space = self.module.__dict__
        found = {name: space[name] for name in names if name in space}
        return {name: {"module": value.__name__} if type(value) is type(sys) else self.codec.encode(value) for name, value in found.items()}

    def prove(self, tests: list[str]) -> Message:
        """Run the tests here, in the program's own process: what they say is the program's word."""
        for test in tests:
            exec(compile(test, "<test>", "exec"), self.module.__dict__)
        return {"value": None}

    def operate(self, asked: str, question: Message) -> Message:
        """One operation on one object; `after` is what became of each argument, None for one that stayed as it was."""
        target = self.objects[question["target"]]
        sent, keywords = question["arguments"], question.get("keywords", {})
        arguments = [self.codec.decode(data) for data in sent]
        value = OPERATIONS[asked](target, *arguments, **{key: self.codec.decode(data) for key, data in keywords.items()})
        answer = {"value": self.codec.encode(value)}
        after = [self.codec.encode(argument) for argument in arguments]
        if after != sent:
            answer["after"] = [now if now != before else None for now, before in zip(after, sent, strict=True)]
        return answer

    def outgoing(self, value: Any) -> Any:
        """A value of a built-in type's subclass as that type; a type by name; anything else stays here, under a number."""
        kind = type(value)
        if id(value) in self.lent and self.lent[id(value)][0] is value:
            return self.lent[id(value)][1]
        for base, under in UNDER:
            if issubclass(kind, base) and kind is not base:
                return self.codec.encode(under(value))
        if kind is type and (name := value.__name__) in FACTORIES and FACTORIES[name] is value:
            return {"type": name}
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic):
            return self.codec.encode(value.item())
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return {"object": self.numbers[id(value)]}

    def incoming(self, tag: str, content: Any) -> Any:
        """An object of ours that comes back, or a callable of the other side's."""
        if tag == "object":
            return self.objects[content]
        number, module, path = content
        found = self.stand_in(number) if module is None else attribute(module, path)
        self.lent[id(found)] = (found, {"callable": content})
        return found

    def stand_in(self, number: int) -> Callable[..., Any]:
        """A function that asks the other side to call its own."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            question = {"ask": "callback", "target": number, "arguments": [self.codec.encode(one) for one in arguments]}
            named = {key: self.codec.encode(one) for key, one in keywords.items()}
            answer = self.peer.ask(question | {"keywords": named})
            if "raised" in answer:
                raise again(answer)
            return self.codec.decode(answer["value"])

        return call


def flush() -> None:
    """Let go of what was printed, since the process is killed in the end; the program may have broken its streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


def attribute(module: str, path: str) -> Any:
    """What `module` calls `path`, dots followed."""
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found
