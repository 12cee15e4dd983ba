"""Lays one part of a recipe over another: fragments first, then the recipe, then overrides.

Mappings merge, everything else is replaced, later wins. Where a later layer makes another choice (another method,
another rule, steps for epochs), the options that belong to the earlier choice alone go with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soka_cli.recipe.document import Node, Reading
from soka_cli.recipe.mistakes import Mistake, did_you_mean
from soka_cli.recipe.options import first_unknown, is_free, is_list, names_at
from soka_cli.recipe.schema import INIT_READS, METHOD_READS, RULE_READS

Keys = tuple[str, ...]

SOURCE: dict[str, tuple[str, ...]] = {
    "path": ("revision", "config"),
    "task": ("prompt", "target", "messages"),
    "prompt": ("task", "messages"),
    "target": ("task", "messages"),
    "messages": ("task", "prompt", "target"),
}

GOES_WITH: dict[Keys, dict[str, tuple[str, ...]]] = {
    ("model",): {"name": ("revision",)},
    ("adapter", "shape"): {"block": ("m", "n"), "m": ("block",), "n": ("block",)},
    ("data", "train"): SOURCE,
    ("data", "train", "*"): SOURCE,
    ("data", "validation"): {"fraction": ("path", "split", "rows"), "path": ("fraction",)},
    ("train",): {"steps": ("epochs",), "epochs": ("steps",)},
    ("eval", "*"): {"path": ("revision", "config")},
}
"""section -> option -> the earlier layers' options that a new value of it sends away."""

CHOOSERS: tuple[tuple[Keys, str, Mapping[str, Sequence[str]]], ...] = (
    (("adapter",), "method", METHOD_READS),
    (("adapter",), "init", INIT_READS),
    (("adapter", "rank"), "rule", RULE_READS),
)
"""section, the option that chooses there, and what each of its values reads of the options that depend on it."""


def sent_away(section: Keys, before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Options of a section whose ground a later layer took away. `before` and `after` are plain values."""
    gone: set[str] = set()
    pattern = tuple("*" if key.isdecimal() else key for key in section)
    for option, dependants in GOES_WITH.get(pattern, {}).items():
        if after.get(option) is not None and after.get(option) != before.get(option):
            gone |= set(dependants)
    for at, chooser, reads in CHOOSERS:
        chosen = after.get(chooser)
        if section == at and chosen != before.get(chooser) and isinstance(chosen, str) and chosen in reads:
            governed = {name for names in reads.values() for name in names}
            gone |= governed - set(reads[chosen])
    return gone


def lay_over(below: Node, above: Node, path: Keys = ()) -> Node:
    """`above` laid over `below`; neither is changed."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    gone = sent_away(path, below.plain(), above.plain())
    merged = {key: node for key, node in below.value.items() if key not in gone or key in above.value}
    for key, node in above.value.items():
        merged[key] = lay_over(merged[key], node, (*path, key)) if key in merged else node
    return Node(merged, above.place, above.folder, above.overriding)


def apply_overrides(root: Node, overrides: Sequence[str], folder: Path, mistakes: list[Mistake]) -> None:
    """Set dotted overrides (`train.lr=1e-4`, `eval.0.limit=10`) in `root`; a null takes an option away."""
    before = root.plain()
    for text in overrides:
        place = f"override {text}"
        key, equals, written = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            mistakes.append(Mistake(place, "is no override; write key.path=value, e.g. train.lr=1e-4"))
            continue
        reading = Reading(place, folder, overriding=True)
        value = reading.text(written) or Node(None, place, folder, overriding=True)
        mistakes += reading.mistakes
        if reading.mistakes:
            continue
        if complaint := set_value(root, path, value):
            mistakes.append(Mistake(place, complaint))
    drop_sent_away(root, before, ())


def set_value(root: Node, path: Keys, value: Node) -> str | None:
    """Set `value` at `path`; returns what is wrong with the path, if anything."""
    at, path = root, join_free_keys(path)
    for index, key in enumerate(path):
        here = path[:index]
        if is_list(here) and not (isinstance(at.value, dict) and names_at(here)):  # data.train is a list or one mapping
            entries = at.value if isinstance(at.value, list) else []
            if not key.isdecimal() or int(key) >= len(entries):
                there = "no entries" if not entries else f"entries 0 to {len(entries) - 1}" if len(entries) > 1 else "entry 0 alone"
                return f"{'.'.join(here)} has no entry {key}; it has {there}"
        elif first_unknown((*here, key)) is not None:
            return unknown(here, key)
        elif not isinstance(at.value, dict):
            at.value = {}
        at = put(at, key, value) if index == len(path) - 1 else step(at, key, value)
    return None


def join_free_keys(path: Keys) -> Keys:
    """shape_pattern's and filter's keys may hold dots: all that follows is one key."""
    for index in range(1, len(path)):
        if is_free(path[:index]):
            return (*path[:index], ".".join(path[index:]))
    return path


def put(at: Node, key: str, value: Node) -> Node:
    if isinstance(at.value, list):
        at.value[int(key)] = value
    elif isinstance(at.value, dict):
        at.value[key] = value
    return value


def step(at: Node, key: str, value: Node) -> Node:
    """The node at `key`, made where it is missing."""
    found = at.child(int(key) if isinstance(at.value, list) else key)
    return found or put(at, key, Node({}, value.place, value.folder, overriding=False))


def unknown(here: Keys, key: str) -> str:
    """The sentence about an option that the schema does not have at `here`."""
    names = names_at(here)
    dotted = ".".join((*here, key))
    if not names:
        return f"{dotted} is no option; {'.'.join(here)} holds one value, not options"
    return f"{dotted} is no option{did_you_mean(key, names)}"


def drop_sent_away(node: Node, before: Any, path: Keys) -> None:
    """After all overrides: remove what they took the ground from, except what an override itself set."""
    if isinstance(node.value, list):
        for index, child in enumerate(node.value):
            earlier = before[index] if isinstance(before, list) and index < len(before) else {}
            drop_sent_away(child, earlier, (*path, str(index)))
    if not isinstance(node.value, dict) or not isinstance(before, dict):
        return
    for key in sent_away(path, before, node.plain()):
        if key in node.value and not overridden(node.value[key]):
            del node.value[key]
    for key, child in node.value.items():
        drop_sent_away(child, before.get(key, {}), (*path, key))


def overridden(node: Node) -> bool:
    return node.overriding or any(child.overriding for _, child in node.walk())
