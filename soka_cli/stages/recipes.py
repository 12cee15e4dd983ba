"""The recipes that come with the package: list them, show one resolved, copy one to change it; check any, describe all options."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.json_schema import FILE_NAME, MODELINE, modeline, recipe_schema, schema_file
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import find_recipe, packaged, packaged_recipes
from soka_cli.recipe.reference import reference
from soka_cli.recipe.resolved import to_mapping
from soka_cli.run.write import write_text
from soka_cli.stages.outcome import Outcome, Table

FIRST_COMPARISON = (
    "soka run -r demo.yaml -d runs/soka",
    "soka run -r demo.yaml -d runs/lora adapter.method=lora adapter.match_parameters=soka",
    "soka compare runs/soka runs/lora",
)
"""SoKA beside LoRA of the same size, on the packaged model."""


def list_recipes() -> Outcome:
    """Every packaged recipe with the first line of its comment."""
    found = [(name, description(packaged("recipes") / f"{name}.yaml")) for name in packaged_recipes()]
    return Outcome(
        stage="recipes",
        status="done",
        figures={"recipes": [{"name": name, "description": text} for name, text in found]},
        tables=(Table("Recipes", ("name", "what it is"), tuple(found)),),
        notes=(
            "A file that says `extends: [gsm8k]` takes one over and changes what it names.",
            "\n      ".join(("A first comparison, offline and in minutes:", *FIRST_COMPARISON)),
        ),
        next_commands=("soka plan --recipe gsm8k.yaml", "soka recipes copy gsm8k"),
    )


def description(path: Path) -> str:
    """The text of a recipe's first comment line that is meant for people, empty where it has none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.lstrip("# ").strip() if line.startswith("#") and not line.startswith(MODELINE) else "":
            return text
    return ""


def show_recipe(name: str, overrides: Sequence[str] = ()) -> Outcome:
    """A recipe with all that it extends and every default spelt out, as YAML that loads back equal; beside each value, who set it.

    Raises:
        SokaError: exit 2, no such recipe, or mistakes in it.
    """
    loaded = load_recipe(name, overrides)
    mapping = to_mapping(loaded.recipe)
    lines = list(annotated(mapping, loaded.origins))
    width = max(len(text) for text, origin in lines if origin)
    return Outcome(
        stage="recipes",
        status="done",
        figures={"name": name, "recipe": mapping, "origins": loaded.origins},
        text="\n".join(f"{text:{width}}  # {origin}" if origin else text for text, origin in lines),
    )


def annotated(value: Mapping[str, Any], origins: Mapping[str, str], path: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    """Lines of YAML, and where the value of each was written; a line that only opens a section has no origin."""
    for key, inner in value.items():
        dotted = f"{path}.{key}" if path else key
        head = f"{indent}{one_line(key)}:"
        if isinstance(inner, Mapping) and inner:
            yield head, ""
            yield from annotated(inner, origins, dotted, f"{indent}  ")
        elif isinstance(inner, list) and inner and all(isinstance(entry, Mapping) and entry for entry in inner):
            yield head, ""
            for index, entry in enumerate(inner):
                lines = list(annotated(entry, origins, f"{dotted}.{index}", f"{indent}  "))
                yield f"{indent}- {lines[0][0].removeprefix(f'{indent}  ')}", lines[0][1]
                yield from lines[1:]
        else:
            yield f"{head} {one_line(inner)}", origins.get(dotted, "default")


def one_line(value: Any) -> str:
    """A value as YAML writes it in one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    return str(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)).removesuffix("\n").removesuffix("\n...")


def validate_recipes(names: Sequence[str]) -> Outcome:
    """Load every named recipe, the packaged ones where none is named, and say what is wrong with any.

    Raises:
        SokaError: exit 2, with the mistakes of all of them.
    """
    wrong: dict[str, SokaError] = {}
    names = list(names) or packaged_recipes()
    for name in names:
        try:
            load_recipe(name)
        except SokaError as error:
            wrong[name] = error
    if wrong:
        raise SokaError(
            f"{len(wrong)} of {len(names)} recipes cannot be used",
            where=", ".join(wrong),
            why="\n".join(error.why or error.what for error in wrong.values()),
            hint="\n".join(f"soka recipes validate {name}" for name in wrong) if len(names) > 1 else next(iter(wrong.values())).hint,
            exit_code=ExitCode.USAGE,
        )
    return Outcome("recipes", "done", figures={"valid": names}, notes=tuple(f"{name}: no mistakes" for name in names))


def show_schema() -> Outcome:
    """The JSON schema of recipes, for an editor or another program."""
    schema = recipe_schema()
    return Outcome("recipes", "done", figures={"schema": schema}, text=json.dumps(schema, indent=2, ensure_ascii=False))


def show_reference() -> Outcome:
    """Every option with what it takes and means, as a page of Markdown."""
    text = reference()
    return Outcome("recipes", "done", figures={"reference": text}, text=text)


def copy_recipe(name: str, folder: Path | None = None) -> Outcome:
    """Copy a packaged recipe, comments and all, into `folder` (the current one if None); what it extends stays packaged.

    The schema by which editors complete it is copied beside it.

    Raises:
        SokaError: exit 2, no such recipe, or a file of that name is there already.
    """
    source = find_recipe(packaged("recipes") / name)
    target = (folder or Path()) / source.name
    if target.exists():
        raise SokaError(
            f"{target} exists already.",
            where=str(target.resolve()),
            hint=f"change that file, or move it away first: mv {target} {target.stem}-old.yaml",
            exit_code=ExitCode.USAGE,
        )
    schema = target.with_name(FILE_NAME)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    own = [line for line in lines if not line.startswith(MODELINE)]
    write_text(schema, schema_file().read_text(encoding="utf-8"))
    write_text(target, "".join([modeline(schema, target.parent) + "\n", *own]))
    return Outcome(
        stage="recipes",
        status="done",
        figures={"copied": str(target), "from": source.name, "schema": str(schema)},
        notes=(f"copied to {target}; it may be changed freely ({schema.name} beside it lets editors complete it)",),
        next_commands=(f"soka plan --recipe {target}", f"soka run --recipe {target}"),
    )
