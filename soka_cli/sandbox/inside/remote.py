"""What a test holds in place of an object of the program's: it can be used, and is equal to nothing that the program did not make."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trial import Trial


class Remote:
    """An object that lives in the program's process.

    Calls, attributes, items, iteration, length, truth and text are asked there. There is no arithmetic and no order, and equality
    only between two such objects: each of them would hand the value that a test expects to the program's own methods.
    """

    __slots__ = ("_number", "_trial")

    def __init__(self, trial: "Trial", number: int) -> None:
        object.__setattr__(self, "_trial", trial)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._trial.operate("call", self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._trial.operate("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._trial.operate("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._trial.operate("delattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._trial.operate("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._trial.operate("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._trial.operate("delitem", self, key)

    def __iter__(self) -> Any:
        return iter_of(self._trial.operate("iter", self))

    def __next__(self) -> Any:
        return self._trial.operate("next", self)

    def __len__(self) -> int:
        return self._trial.operate("len", self)

    def __bool__(self) -> bool:
        return self._trial.operate("bool", self)

    def __str__(self) -> str:
        return self._trial.operate("str", self)

    def __repr__(self) -> str:
        return self._trial.operate("repr", self)

    def __format__(self, form: str) -> str:
        return self._trial.operate("format", self, form)

    def __int__(self) -> int:
        return self._trial.operate("int", self)

    def __float__(self) -> float:
        return self._trial.operate("float", self)

    def __index__(self) -> int:
        return self._trial.operate("index", self)

    def __enter__(self) -> Any:
        return self._trial.operate("enter", self)

    def __exit__(self, *error: object) -> None:
        self._trial.operate("exit", self)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and self._trial.operate("isinstance", self, value)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is Remote and self._trial.operate("eq", self, other) is True)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._number)


def iter_of(value: Any) -> Any:
    """An iterator that the program named; a plain value in its place is no iterator."""
    if type(value) is not Remote:
        raise TypeError("the program's iterator is none")
    return value
