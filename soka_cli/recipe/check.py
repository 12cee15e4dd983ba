"""Nodes -> Recipe: pydantic judges the values, this module says what it found in a recipe's own words, with the line."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from soka_cli.recipe.document import Node
from soka_cli.recipe.layers import unknown
from soka_cli.recipe.mistakes import Mistake, did_you_mean, nearest
from soka_cli.recipe.options import below, names_at, parts
from soka_cli.recipe.schema import Recipe

Keys = tuple[str | int, ...]

BOUNDS = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
}
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "text; put a number in quotes",
    "string_too_short": "text, and this is empty",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}


def check(root: Node, mistakes: list[Mistake]) -> Recipe | None:
    """The recipe that the nodes spell, or None after adding all that is wrong with them.

    Options that are wrong each for itself hide from pydantic what is wrong between options; so the former are taken out and
    the rest is judged once more, without repeating complaints about what was taken out. Nor is anything said about a place
    that is among `mistakes` already: what stands there could not be read.
    """
    plain = root.plain()
    errors = faults(plain)
    if not errors:
        return None if mistakes else Recipe.model_validate(plain)
    broken = [keys_of(error) for error in errors if error["type"] != "misfit"]
    guesses = meant(errors)
    rest = deepcopy(plain)
    if all(take_out(rest, keys) for keys in broken):
        errors += [error for error in faults(rest) if error["type"] == "misfit" and not touches(error, [*broken, *guesses])]
    spoilt = {mistake.place for mistake in mistakes}
    found = [
        Mistake(place_of(keys_of(error), root), sentence(error))
        for error in errors
        if not (error["type"] == "missing" and keys_of(error) in guesses)
    ]
    mistakes += sorted((mistake for mistake in found if mistake.place not in spoilt), key=lambda mistake: order(mistake.place))
    return None


def meant(errors: list[Any]) -> list[Keys]:
    """What the misspelt options among the errors were probably meant to be."""
    typos = [keys_of(error) for error in errors if error["type"] == "extra_forbidden"]
    guesses = [(keys[:-1], nearest(str(keys[-1]), names_at(tuple(map(str, keys[:-1]))))) for keys in typos]
    return [(*section, guess) for section, guess in guesses if guess is not None]


def faults(plain: Any) -> list[Any]:
    try:
        Recipe.model_validate(plain)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []


def keys_of(error: Any) -> Keys:
    """The path of an error without the tags of a union's members; for a misfit, that of the option to mend first."""
    own = tuple(key for key in error["loc"] if not str(key).startswith("<"))
    if error["type"] == "misfit":
        return (*own, *split(error["ctx"]["concerns"][0]))
    return own


def split(dotted: str) -> Keys:
    return tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))


def touches(error: Any, taken: Iterable[Keys]) -> bool:
    """Whether a misfit speaks of something that was taken out, or of a section that held it."""
    concerned = [(*error["loc"], *split(concern)) for concern in error["ctx"]["concerns"]]
    return any(path[: len(keys)] == keys or keys[: len(path)] == path for path in concerned for keys in taken)


def take_out(plain: Any, keys: Keys) -> bool:
    """Remove the value at `keys`; False where that would move a list's other entries. A missing one is no trouble."""
    at: Any = plain
    for key in keys[:-1]:
        at = at[int(key)] if isinstance(at, list) else at.get(key) if isinstance(at, dict) else None
        if at is None:
            return True
    if isinstance(at, dict) and keys:
        at.pop(str(keys[-1]), None)
        return True
    return False


def order(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (place, 0)


def place_of(keys: Keys, root: Node) -> str:
    """Where the value at `keys` stands, or the innermost thing around it."""
    at = root
    for key in keys:
        inner = at.child(key)
        if inner is None:
            break
        at = inner
    return at.place


def sentence(error: Any) -> str:
    """One error in words: the option's dotted path, what is wrong, what is allowed."""
    kind, keys, value = error["type"], keys_of(error), error["input"]
    dotted = ".".join(map(str, keys))
    if kind == "misfit":
        section = ".".join(str(key) for key in error["loc"] if not str(key).startswith("<"))
        return f"{section}: {error['msg']}" if section else error["msg"]
    if kind == "extra_forbidden":
        return unknown(tuple(map(str, keys[:-1])), str(keys[-1]))
    if kind == "missing":
        return f"{dotted} is missing{meaning(keys)}"
    if kind == "literal_error":
        allowed = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        allowed += ["{block: 64}", "{m: 64, n: 64}"] if "<name>" in error["loc"] else []
        return f"{dotted}: {shown(value)} is not available{did_you_mean(str(value), allowed, kind='available')}"
    if kind in BOUNDS:
        return f"{dotted} is {shown(value)}; it {BOUNDS[kind].format(**error['ctx'])}"
    if kind == "int_from_float":
        return f"{dotted} is {shown(value)}, not a whole number"
    if kind == "string_pattern_mismatch":
        return f"{dotted} is {shown(value)}; letters, digits, dot, dash and underscore make a folder name"
    wanted = WANTED.get(kind) or WANTED.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_attributes"))
    if wanted:
        options = names_at(tuple(map(str, keys)))
        return f"{dotted or 'the recipe'} is {shown(value)}, and takes {wanted}{' of ' + ', '.join(options) if options else ''}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{dotted} {message}"


def shown(value: Any) -> str:
    """A value as a recipe writes it, cut to a line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value) if isinstance(value, str) and not value else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def meaning(keys: Keys) -> str:
    """`: Hub id or folder ...`, the sentence of the option's field."""
    kinds: list[Any] = [Recipe]
    for key in keys[:-1]:
        kinds = [kind for outer in kinds for kind in below(outer, str(key)) or []]
    tables = [getattr(part, "model_fields", {}) for kind in kinds for part in parts(kind)]
    descriptions = [table[str(keys[-1])].description for table in tables if keys[-1] in table]
    return f": {descriptions[0]}" if descriptions and descriptions[0] else ""
