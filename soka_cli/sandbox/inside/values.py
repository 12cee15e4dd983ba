"""Python values as tagged JSON: exact built-in types and a few value types of the standard library, nothing pickled.

JSON's own types stand for themselves; anything else is an object of one key, its tag. What has no value form is left to the
two functions that a codec is made of.
"""

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

from .channel import ProtocolError

EXACT_IN_JSON = 1 << 53  # larger whole numbers travel as hexadecimal text: no limit of digits, linear time
DEEPEST = 100  # levels of nesting

Tag = dict[str, Any]
Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]

FACTORIES = {kind.__name__: kind for kind in (int, float, complex, bool, str, bytes, list, tuple, set, frozenset, dict)}


def _pairs(mapping: Any, encode: Encode) -> list[Any]:
    return [[encode(key), encode(value)] for key, value in mapping.items()]


def _items(values: Iterable[Any], encode: Encode) -> list[Any]:
    return [encode(value) for value in values]


def _bounds(value: Any, encode: Encode) -> Any:
    return _items((value.start, value.stop, value.step), encode)


def _latin(value: Any, encode: Encode) -> Any:
    return value.decode("latin-1")


BUILT_IN: dict[type, tuple[str, Callable[[Any, Encode], Any], Callable[[Any, Decode], Any]]] = {
    complex: ("complex", lambda value, encode: [encode(value.real), encode(value.imag)], lambda data, decode: complex(*map(decode, data))),
    bytes: ("bytes", _latin, lambda data, decode: data.encode("latin-1")),
    bytearray: ("bytearray", _latin, lambda data, decode: bytearray(data, "latin-1")),
    tuple: ("tuple", _items, lambda data, decode: tuple(map(decode, data))),
    set: ("set", _items, lambda data, decode: set(map(decode, data))),
    frozenset: ("frozenset", _items, lambda data, decode: frozenset(map(decode, data))),
    dict: ("dict", _pairs, lambda data, decode: {decode(key): decode(value) for key, value in data}),
    range: ("range", _bounds, lambda data, decode: range(*map(decode, data))),
    slice: ("slice", _bounds, lambda data, decode: slice(*map(decode, data))),
    type(...): ("ellipsis", lambda value, encode: None, lambda data, decode: ...),
}


def _time_parts(*names: str) -> Callable[[Any, Encode], Any]:
    return lambda value, encode: [getattr(value, name) for name in names]


def _made_of_parts(kind: Any, data: Any, decode: Decode) -> Any:
    return kind(*map(decode, data))


DAY, CLOCK = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
STANDARD: dict[str, tuple[Callable[[Any, Encode], Any], Callable[[Any, Any, Decode], Any]]] = {
    "decimal.Decimal": (lambda value, encode: [str(value)], _made_of_parts),
    "fractions.Fraction": (lambda value, encode: _items((value.numerator, value.denominator), encode), _made_of_parts),
    "datetime.date": (_time_parts(*DAY), _made_of_parts),
    "datetime.time": (_time_parts(*CLOCK), _made_of_parts),
    "datetime.datetime": (_time_parts(*DAY, *CLOCK), _made_of_parts),
    "datetime.timedelta": (_time_parts("days", "seconds", "microseconds"), _made_of_parts),
    "array.array": (lambda value, encode: [value.typecode, _items(value, encode)], _made_of_parts),
    "collections.deque": (lambda value, encode: [_items(value, encode), value.maxlen], _made_of_parts),
    "collections.OrderedDict": (_pairs, lambda kind, data, decode: kind((decode(key), decode(value)) for key, value in data)),
    "collections.Counter": (_pairs, lambda kind, data, decode: kind({decode(key): decode(value) for key, value in data})),
    "collections.defaultdict": (
        lambda value, encode: [getattr(value.default_factory, "__name__", None), _pairs(value, encode)],
        lambda kind, data, decode: kind(FACTORIES.get(data[0]), {decode(key): decode(value) for key, value in data[1]}),
    ),
}
"""Value types that a program may use instead of the built-in ones: by name, so that a sandbox starts without importing them."""

TAGS = {tag: decode for tag, _, decode in BUILT_IN.values()}


def has_value_form(value: Any, name: str) -> bool:
    """Whether a value of a STANDARD type is whole in the form that travels."""
    if name == "collections.defaultdict":
        return value.default_factory is None or FACTORIES.get(getattr(value.default_factory, "__name__", "")) is value.default_factory
    return getattr(value, "tzinfo", None) is None and not getattr(value, "fold", 0)


class Codec:
    """Values to JSON and back.

    Args:
        outgoing: the tag for a value that has no form of its own.
        incoming: the object that a tag of the other side stands for; ProtocolError for one that it may not send.
    """

    def __init__(self, outgoing: Callable[[Any], Tag], incoming: Callable[[str, Any], Any]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    def encode(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -EXACT_IN_JSON <= value <= EXACT_IN_JSON else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if depth > DEEPEST:
            return self._outgoing(value)

        def inner(part: Any) -> Any:
            return self.encode(part, depth + 1)

        if kind is list:
            return _items(value, inner)
        if kind in BUILT_IN:
            tag, encode, _ = BUILT_IN[kind]
            return {tag: encode(value, inner)}
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in STANDARD and has_value_form(value, name):
            return {name: STANDARD[name][0](value, inner)}
        return self._outgoing(value)

    def decode(self, data: Any) -> Any:
        """The value that `data` spells; ProtocolError if it spells none."""
        try:
            return self._decode(data)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ProtocolError(f"a value that cannot be read: {type(error).__name__}") from error

    def _decode(self, data: Any) -> Any:
        if data is None or isinstance(data, bool | int | float | str):
            return data
        if isinstance(data, list):
            return [self._decode(part) for part in data]
        ((tag, content),) = data.items()
        if tag == "int":
            return int(content, 16)
        if tag == "float":
            return float(content)
        if tag in TAGS:
            return TAGS[tag](content, self._decode)
        if tag in STANDARD:
            module, _, kind = tag.rpartition(".")
            return STANDARD[tag][1](getattr(importlib.import_module(module), kind), content, self._decode)
        return self._incoming(tag, content)
