"""Walks the schema: which options there are at a dotted path."""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from soka_cli.recipe.schema import Recipe, Section


def parts(annotation: Any) -> list[Any]:
    """The members of a union, without Annotated around them."""
    if get_origin(annotation) is Annotated:
        return parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in parts(member)]
    return [annotation]


def below(annotation: Any, key: str) -> list[Any] | None:
    """What `key` may hold inside a value of this type; None where the type has no such key."""
    found: list[Any] = []
    for part in parts(annotation):
        if isinstance(part, type) and issubclass(part, Section) and key in part.model_fields:
            found.append(part.model_fields[key].annotation)
        elif get_origin(part) is dict:
            found.append(get_args(part)[1])
        elif get_origin(part) is list and key.isdecimal():
            found.append(get_args(part)[0])
        elif part is Any:
            found.append(Any)
    return found or None


def names_at(path: tuple[str, ...]) -> list[str]:
    """The options of the section at `path`, in the schema's order; empty where it is no section."""
    kinds: list[Any] = [Recipe]
    for key in path:
        kinds = [kind for outer in kinds for kind in below(outer, key) or []]
    sections = [part for kind in kinds for part in parts(kind) if isinstance(part, type) and issubclass(part, Section)]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def first_unknown(path: tuple[str, ...]) -> int | None:
    """Index of the first key of `path` that the schema does not have; None where it has them all."""
    kinds: list[Any] = [Recipe]
    for index, key in enumerate(path):
        inner = [kind for outer in kinds for kind in below(outer, key) or []]
        if not inner:
            return index
        kinds = inner
    return None


def is_list(path: tuple[str, ...]) -> bool:
    """Whether the value at `path` is a list of sections."""
    kinds: list[Any] = [Recipe]
    for key in path:
        kinds = [kind for outer in kinds for kind in below(outer, key) or []]
    return any(get_origin(part) is list for kind in kinds for part in parts(kind))


def is_free(path: tuple[str, ...]) -> bool:
    """Whether the keys of the mapping at `path` are the user's own (filter, shape_pattern)."""
    kinds: list[Any] = [Recipe]
    for key in path:
        kinds = [kind for outer in kinds for kind in below(outer, key) or []]
    return any(get_origin(part) is dict for kind in kinds for part in parts(kind))


def sections(section: type[Section] = Recipe) -> list[type[Section]]:
    """Every section of the schema, outer ones first."""
    found: list[type[Section]] = [section]
    for field in section.model_fields.values():
        inner = [argument for part in parts(field.annotation) for argument in (part, *get_args(part))]
        for part in [member for argument in inner for member in parts(argument)]:
            if isinstance(part, type) and issubclass(part, Section) and part not in found:
                found += [one for one in sections(part) if one not in found]
    return found
