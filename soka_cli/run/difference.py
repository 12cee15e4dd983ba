"""What differs between two recipes, or between the inputs of two runs of a stage, in lines for a person."""

from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = object()
DIGEST_LENGTH = 64


def shown(value: Any) -> str:
    """A value as a person would write it in a recipe; digests by their first twelve digits."""
    if value is ABSENT:
        return "(not set)"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and len(value) == DIGEST_LENGTH and all(character in "0123456789abcdef" for character in value):
        return value[:12]
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shown(entry)}' for key, entry in value.items())}}}"
    return str(value)


def children(value: Any) -> dict[str, Any] | None:
    """Named parts of a mapping, numbered parts of a list that holds mappings, None for everything that is shown whole."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        return {str(index): entry for index, entry in enumerate(value)}
    return None


def walk(old: Any, new: Any, path: str) -> Iterator[str]:
    if old == new:
        return
    before, after = children(old), children(new)
    if before is None or after is None:
        yield f"{path}: {shown(old)} -> {shown(new)}"
        return
    for key in [*before, *(key for key in after if key not in before)]:
        yield from walk(before.get(key, ABSENT), after.get(key, ABSENT), f"{path}.{key}" if path else key)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line a value that differs: `train.lr: 2e-05 -> 0.0001`. Lists of plain values are shown whole."""
    return list(walk(old, new, ""))
