"""Exceptions that cross from one process to another: built-in class names and a text, never an object."""

import builtins
from typing import Any

from .channel import Message

LONGEST_TEXT = 500


class ProgramError(Exception):
    """The program raised something of its own making."""


def description(error: BaseException) -> Message:
    """The message that stands for an exception. Its text is made where the exception was raised."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:LONGEST_TEXT]
    except BaseException as second:
        text = f"an exception whose text raises {type(second).__name__}"
    return {"raised": kinds, "class": type(error).__name__[:LONGEST_TEXT], "text": text}


ENDS = ("StopIteration", "StopAsyncIteration")


def again(message: Message, *, iterating: bool = False) -> Exception:
    """An exception like the one that a message stands for: of its nearest built-in class, or a ProgramError.

    Args:
        iterating: whether the end of an iteration is an answer. Anywhere else it would end a loop of the tests' own, unseen.
    """
    text = str(message.get("text", ""))[:LONGEST_TEXT]
    for name in message["raised"] if isinstance(message["raised"], list) else ():
        if name in ENDS and not iterating:
            break
        kind: Any = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # a class that wants more than a text
                continue
    return ProgramError(sentence(message))


def sentence(message: Message) -> str:
    """`ValueError: no such thing`, for people."""
    kind, text = (str(message.get(key, ""))[:LONGEST_TEXT] for key in ("class", "text"))
    return f"{kind}: {text}" if text else kind
