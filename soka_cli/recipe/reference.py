"""Every option of a recipe as a page of Markdown, written from the schema: docs/recipe.md."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from soka_cli.recipe import schema
from soka_cli.recipe.choices import OneOf
from soka_cli.recipe.options import parts
from soka_cli.recipe.schema import Recipe, Section

HEAD = """\
# Recipe reference

<!-- Written by `soka recipes reference` from the schema; `make docs` writes it anew, and a test holds it to the schema. -->

A recipe is one YAML file. Every option that there is stands below, with what it takes, what it is when it is not named, and what it
means. `soka recipes show NAME` prints a recipe with all that it extends and where each value comes from, `soka recipes validate FILE`
says all that is wrong in one, with line numbers, and `soka recipes schema` prints these options as a JSON schema, by which editors
complete them.

- **`extends: [gsm8k, adapters/lora-qv]`** lays this file over others, each looked for beside it first, then among the packaged fragments
  and recipes. Mappings merge, lists and values are replaced, the later wins. Where a later layer makes another choice (another method,
  another rule, steps for epochs), the options that belong to the earlier choice alone go with it; `null` takes an option away.
- **Overrides** follow the command: `train.lr=1e-4`, `eval.0.limit=10`, `adapter.rank="{rule: fixed, value: 4}"`. They win over the file.
- **Paths** are relative to the file that names them, in overrides to the current folder. `soka:demo/model` is what comes with the package.
- **Counts** may have a suffix: `64k`, `0.99M`, `1B`. **Sizes** have a unit: `8GiB`, `24GB`, or bytes. `2e-5` is a number.
- An option that is not in this list is a mistake, and so is one that the chosen method or rule does not read.
"""

SAID: dict[Any, str] = {
    schema.count_with_suffix: "count",
    schema.size_with_unit: "size",
    schema.modules_named: "list of names, pattern, or `all-linear`",
    schema.count_or_method: "count, `soka`, " + ", ".join(f"`{name}`" for name in schema.RANKED),
    schema.a_pattern: "pattern",
}
"""What a value is that a function of the schema reads."""

PLAIN = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Any: "value"}

READERS: dict[str, tuple[str, Mapping[str, Iterable[str]]]] = {
    "AdapterSection": ("method", schema.METHOD_READS),
    "RankSection": ("rule", schema.RULE_READS),
}
"""Sections in which one option chooses, and what each of its values reads of the others."""


def reference() -> str:
    """The page.

    Raises:
        ValueError: an option or a section has no description.
    """
    return "\n".join([HEAD, *(line for path, kinds in places().items() for line in section_text(path, kinds))])


def places() -> dict[str, list[type[Section]]]:
    """The sections by the dotted path where recipes write them, in the order of the schema.

    Entries of lists and mappings go by the name of these, and a section that several options take by the first of them. Where
    a path has several sections, one of them is written.
    """
    found: dict[str, list[type[Section]]] = {}

    def visit(path: str, section: type[Section]) -> None:
        if any(section in sections for sections in found.values()):
            return
        found.setdefault(path, []).append(section)
        for name, field in section.model_fields.items():
            for inner in sections_in(field.annotation):
                visit(f"{path}.{name}" if path else name, inner)

    visit("", Recipe)
    return found


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a type may hold, also inside lists and mappings."""
    found: list[type[Section]] = []
    for part in parts(annotation):
        if isinstance(part, type) and issubclass(part, Section):
            found.append(part)
        else:
            found += [inner for argument in get_args(part) for inner in sections_in(argument) if inner not in found]
    return found


def section_text(path: str, kinds: Sequence[type[Section]]) -> Iterator[str]:
    """Heading, and sentence and table of each form."""
    yield f"## {path or 'The whole recipe'}\n"
    for section in kinds:
        if not (section.__doc__ or "").strip():
            raise ValueError(f"section {section.__name__} has no description")
        yield f"{' '.join(str(section.__doc__).split())}\n"
        yield "| option | takes | unless named | meaning |\n| --- | --- | --- | --- |"
        for name, field in section.model_fields.items():
            if not field.description:
                raise ValueError(f"option {name} of section {section.__name__} has no description")
            cells = (f"`{name}`", takes(field.annotation, field.metadata), default(field), escaped(field.description))
            yield f"| {' | '.join(cells)}{read_by(section, name)} |"
        yield ""


def takes(annotation: Any, metadata: Sequence[Any]) -> str:
    """What a value may be, in words."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return takes(inner, [*more, *metadata])
    flat = [one for item in metadata for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
    for one in flat:
        if isinstance(one, OneOf):
            return ", ".join(f"`{name}`" for name in one.names())
    said = [SAID[one.func] for one in flat if isinstance(one, BeforeValidator | AfterValidator) and one.func in SAID]
    return f"{said[0] if said else kind(annotation)}{bounds(flat)}"


def kind(annotation: Any) -> str:
    """As `takes`, of a type without what stands beside it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(takes(one, ()) for one in arguments if one is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{name}`" for name in arguments)
    if origin is list:
        return f"list of {takes(arguments[0], ())}"
    if origin is dict:
        return f"mapping of {takes(arguments[0], ())} to {takes(arguments[1], ())}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        path = next(path for path, kinds in places().items() if annotation in kinds)
        return f"[{path}](#{path.replace('.', '')})"
    return PLAIN[annotation]


def bounds(metadata: Sequence[Any]) -> str:
    """`, 1 or more`, `, above 0, at most 1`: the limits that stand beside a type."""
    words = []
    for one in metadata:
        words += [f"{one.ge:g} or more"] if isinstance(one, Ge) else []
        words += [f"above {one.gt:g}"] if isinstance(one, Gt) else []
        words += [f"at most {one.le:g}"] if isinstance(one, Le) else []
        words += [f"below {one.lt:.10g}"] if isinstance(one, Lt) else []
    return "".join(f", {word}" for word in words)


def default(field: FieldInfo) -> str:
    """What the option is when nobody names it."""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Section):
        return "as below"
    text = yaml.safe_dump(field.default, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def read_by(section: type[Section], name: str) -> str:
    """Who reads the option, where its section has a choice and not every choice does."""
    said = []
    if section.__name__ in READERS:
        chooser, reads = READERS[section.__name__]
        readers = [choice for choice, names in reads.items() if name in names]
        if name != chooser and len(readers) < len(reads):
            said.append(f"{chooser} {', '.join(readers)}")
    if section is schema.AdapterSection and (starts := [init for init, names in schema.INIT_READS.items() if name in names]):
        said = [f"init {', '.join(starts)}"]
    if section is schema.TrainSection and name in schema.TRAIN_METHODS:
        said.append(f"method {', '.join(schema.TRAIN_METHODS[name])}")
    return f" *Read by {said[0]}.*" if said else ""


def escaped(text: str) -> str:
    """A sentence as a cell of a table takes it."""
    return text.replace("|", "\\|").replace("<", "\\<")
