"""YAML text -> nodes that remember their file and line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from soka_cli.recipe.mistakes import Mistake

MOST_NODES = 20_000
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
Scalar = str | int | float | bool | None


@dataclass
class Node:
    """One value of a recipe and where it was written.

    Attributes:
        value: a scalar, a list of nodes, or nodes by key.
        place: `recipe.yaml:12`, or `override train.lr=1e-4`.
        folder: what relative paths in it are relative to.
        overriding: whether it comes from the command line.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    place: str
    folder: Path
    overriding: bool = False

    def plain(self) -> Any:
        """The value without places. A null in a mapping counts as not written."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items() if node.value is not None}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> "Node | None":
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def walk(self, path: tuple[str, ...] = ()) -> "Iterator[tuple[str, Node]]":
        """Dotted path and node of everything below, the node itself excluded."""
        children = self.value.items() if isinstance(self.value, dict) else enumerate(self.value) if isinstance(self.value, list) else ()
        for key, node in children:
            yield ".".join((*path, str(key))), node
            yield from node.walk((*path, str(key)))


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.2's scalars: 2e-5 is a number; on, yes, 1:30 and 2024-01-01 are text."""


RecipeLoader.yaml_implicit_resolvers = {}


for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


@dataclass
class Reading:
    """One file (or override value) being turned into nodes; mistakes are collected, not raised."""

    label: str
    folder: Path
    overriding: bool = False
    mistakes: list[Mistake] = field(default_factory=list)
    nodes: int = 0

    def place(self, node: yaml.Node) -> str:
        return self.label if self.overriding else f"{self.label}:{node.start_mark.line + 1}"

    def report(self, node: yaml.Node, message: str) -> None:
        self.mistakes.append(Mistake(self.place(node), message))

    def text(self, text: str) -> Node | None:
        """The document's root, or None after a mistake that leaves nothing to go on with."""
        try:
            loader = RecipeLoader(text)
            try:
                root = loader.get_single_node()
            finally:
                loader.dispose()
            return None if root is None else self.convert(root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = "" if mark is None or self.overriding else f":{mark.line + 1}"
            self.mistakes.append(Mistake(f"{self.label}{line}", f"is not YAML: {explain(error)}"))
        except yaml.YAMLError as error:
            self.mistakes.append(Mistake(self.label, f"is not YAML: {' '.join(str(error).split())}"))
        except RecursionError:
            self.mistakes.append(Mistake(self.label, "is nested too deeply for a recipe"))
        return None

    def convert(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> Node:
        self.nodes += 1
        if node in above:
            self.report(node, "an anchor holds itself")
            return self.node(node, None)
        if self.nodes > MOST_NODES:
            if self.nodes == MOST_NODES + 1:
                self.report(node, f"anchors blow the document up to more than {MOST_NODES} values")
            return self.node(node, None)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in COLLECTIONS:
            self.refuse_tag(node)
            return self.node(node, None)
        inside = (*above, node)
        if isinstance(node, yaml.MappingNode):
            return self.node(node, self.mapping(node, inside))
        if isinstance(node, yaml.SequenceNode):
            return self.node(node, [self.convert(item, inside) for item in node.value])
        return self.node(node, self.scalar(node) if isinstance(node, yaml.ScalarNode) else None)

    def refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.report(node, f"the tag {tag} is not allowed; a recipe holds text, numbers, true, false and null, lists and mappings")

    def node(self, node: yaml.Node, value: Any) -> Node:
        return Node(value, self.place(node), self.folder, self.overriding)

    def mapping(self, node: yaml.MappingNode, inside: tuple[yaml.Node, ...]) -> dict[str, Node]:
        """Keys in order; a key named twice is a mistake; `<<: *anchor` gives what the mapping itself does not name."""
        inherited: dict[str, Node] = {}
        own: dict[str, Node] = {}
        first: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(key, "a key must be one word")
            elif key.tag == "tag:yaml.org,2002:merge":
                self.merge(value, inherited, inside)
            elif key.value in own:
                self.report(key, f"{key.value} is written twice, first on line {first[key.value]}")
            else:
                own[key.value] = self.convert(value, inside)
                own[key.value].place = self.place(key)
                first[key.value] = key.start_mark.line + 1
        return {**inherited, **own}

    def merge(self, value: yaml.Node, inherited: dict[str, Node], inside: tuple[yaml.Node, ...]) -> None:
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            merged = self.convert(source, inside).value
            if not isinstance(merged, dict):
                self.report(value, "<< takes a mapping, or a list of mappings")
                return
            for key, node in merged.items():
                inherited.setdefault(key, node)

    def scalar(self, node: yaml.ScalarNode) -> Scalar:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text = node.value
        try:
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                return int(text, 16) if text.startswith("0x") else int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=[a-z])", "", text.lower()))
        except ValueError:
            self.report(node, f"{text} is no {kind}")
            return None
        if kind == "null":
            return None
        if kind != "str":
            self.refuse_tag(node)
        return str(text)


def explain(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's complaint in one line, with the cure where it is known."""
    problem = error.problem or error.context or "unreadable"
    if "\\t" in problem:
        return "a tab where spaces are wanted"
    if "expected a single document" in (error.context or ""):
        return "it holds more than one document (a line ---)"
    if "mapping values are not allowed" in problem:
        return "a second ': ' in one line; put text that holds it in quotes"
    if "undefined alias" in problem:
        return f"{problem}; name it with & before"
    context = f"{error.context}, " if error.context and error.context != problem else ""
    return " ".join(f"{context}{problem}".split())


def read_document(path: Path, label: str, mistakes: list[Mistake]) -> tuple[Node | None, str]:
    """A recipe file's root mapping and its text; None with a mistake added where there is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mistakes.append(Mistake(label, f"is not UTF-8 text (byte {error.start}); a recipe is a YAML file"))
        return None, ""
    except OSError as error:
        mistakes.append(Mistake(label, f"cannot be read: {error.strerror}"))
        return None, ""
    reading = Reading(label, path.parent)
    root = reading.text(text)
    mistakes += reading.mistakes
    if root is None:
        if not reading.mistakes:
            mistakes.append(Mistake(label, "is empty; a recipe names model and data at least"))
        return None, text
    if root.value is None and not reading.mistakes:
        mistakes.append(Mistake(root.place, "is empty; a recipe names model and data at least"))
        return None, text
    if not isinstance(root.value, dict):
        found = "a list" if isinstance(root.value, list) else f"the text {str(root.value)[:40]!r}"
        mistakes.append(Mistake(root.place, f"holds {found} where a mapping (model: ..., data: ...) is wanted"))
        return None, text
    return root, text
