"""The recipes that come with the package: list them, show one resolved, copy one to change it."""

from pathlib import Path

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import find_recipe, packaged, packaged_recipes
from soka_cli.recipe.resolved import to_mapping, to_yaml
from soka_cli.run.write import write_text
from soka_cli.stages.outcome import Outcome, Table


def list_recipes() -> Outcome:
    """Every packaged recipe with the first line of its comment."""
    found = [(name, description(packaged("recipes") / f"{name}.yaml")) for name in packaged_recipes()]
    return Outcome(
        stage="recipes",
        status="done",
        figures={"recipes": [{"name": name, "description": text} for name, text in found]},
        tables=(Table("Recipes", ("name", "what it is"), tuple(found)),),
        notes=("A file that says `extends: [gsm8k]` takes one over and changes what it names.",),
        next_commands=("soka plan --recipe gsm8k.yaml", "soka recipes copy gsm8k"),
    )


def description(path: Path) -> str:
    """The text of a recipe's first comment line, empty where it has none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.lstrip("# ").strip() if line.startswith("#") else "":
            return text
    return ""


def show_recipe(name: str) -> Outcome:
    """A recipe with all that it extends and every default spelt out, as YAML that loads back equal.

    Raises:
        SokaError: exit 2, no such recipe, or mistakes in it.
    """
    recipe = load_recipe(name).recipe
    return Outcome(
        stage="recipes",
        status="done",
        figures={"name": name, "recipe": to_mapping(recipe)},
        notes=(to_yaml(recipe).rstrip("\n"),),
    )


def copy_recipe(name: str, folder: Path | None = None) -> Outcome:
    """Copy a packaged recipe, comments and all, into `folder` (the current one if None); what it extends stays packaged.

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
    write_text(target, source.read_text(encoding="utf-8"))
    return Outcome(
        stage="recipes",
        status="done",
        figures={"copied": str(target), "from": source.name},
        notes=(f"copied to {target}; it may be changed freely",),
        next_commands=(f"soka plan --recipe {target}", f"soka run --recipe {target}"),
    )
