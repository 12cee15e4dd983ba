"""Recipe file + fragments + overrides -> a checked Recipe, or every mistake at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from soka_cli.recipe.check import check
from soka_cli.recipe.document import Node, read_document
from soka_cli.recipe.layers import apply_overrides, lay_over
from soka_cli.recipe.mistakes import Mistake, raise_all
from soka_cli.recipe.places import expanded, find_recipe, packaged, packaged_fragments, packaged_recipes, resolve, shown, with_ending
from soka_cli.recipe.resolved import to_mapping, to_yaml
from soka_cli.recipe.schema import Recipe

__all__ = ["LOCATIONS", "LoadedRecipe", "load_recipe", "to_mapping", "to_yaml"]

LOCATIONS = (
    ("model", "name"),
    ("data", "train", "path"),
    ("data", "train", "*", "path"),
    ("data", "validation", "path"),
    ("train", "init_from"),
    ("eval", "*", "path"),
    ("eval", "*", "shots", "path"),
)
"""Options that hold a path or a Hub id."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A resolved recipe and where it came from.

    Attributes:
        name: the file's stem; the default run directory is runs/<name>.
        path: the recipe's file.
        source_text: the user's own text, comments and all.
        origins: dotted path of each value -> file:line, or the override that set it.
    """

    recipe: Recipe
    name: str
    path: Path | None
    source_text: str
    origins: dict[str, str]

    @property
    def overrides(self) -> tuple[str, ...]:
        """Those that set a value, as they were written."""
        mark = "override "
        return tuple(dict.fromkeys(place.removeprefix(mark) for place in self.origins.values() if place.startswith(mark)))


def load_recipe(source: str | Path, overrides: Sequence[str] = (), *, folder: Path | None = None) -> LoadedRecipe:
    """Load, merge, override and check a recipe.

    Args:
        source: a file, or a packaged recipe's name.
        overrides: `train.lr=1e-4`, `eval.0.limit=10`; values are YAML, null takes an option away.
        folder: what `source` and paths in overrides are relative to; the current folder if None.

    Raises:
        SokaError: exit 2, every mistake with its file and line (or override).
    """
    folder = folder or Path.cwd()
    path = find_recipe(source, folder=folder)
    mistakes: list[Mistake] = []
    root, text = read_layers(path, folder, mistakes)
    recipe = None
    if root is not None:
        apply_overrides(root, overrides, folder, mistakes)
        settle_locations(root)
        recipe = check(root, mistakes)
    raise_all(mistakes, shown(path, folder))
    assert root is not None and recipe is not None
    origins = {dotted: node.place for dotted, node in root.walk() if node.value is not None}
    return LoadedRecipe(recipe=recipe, name=path.stem, path=path, source_text=text, origins=origins)


def read_layers(path: Path, folder: Path, mistakes: list[Mistake], chain: tuple[Path, ...] = ()) -> tuple[Node | None, str]:
    """The file's nodes laid over those that it extends, and the file's own text."""
    root, text = read_document(path, shown(path, folder), mistakes)
    if root is None or not isinstance(root.value, dict):
        return None, text
    extends = root.value.get("extends")
    own = replace(root, value={key: node for key, node in root.value.items() if key not in not_options(path)})
    chain = (*chain, path.resolve())
    merged: Node | None = None
    for name in names_extended(extends, mistakes):
        fragment = find_fragment(name, mistakes)
        if fragment is None:
            continue
        if fragment.resolve() in chain:
            circle = [*chain[chain.index(fragment.resolve()) :], fragment.resolve()]
            mistakes.append(Mistake(name.place, f"extends runs in a circle: {' -> '.join(shown(link, folder) for link in circle)}"))
            continue
        layer, _ = read_layers(fragment, folder, mistakes, chain)
        if layer is not None:
            merged = layer if merged is None else lay_over(merged, layer)
    return (own if merged is None else lay_over(merged, own)), text


def not_options(path: Path) -> tuple[str, ...]:
    """Keys of a file that say nothing about the run: a packaged protocol's own definition is read by its name (tasks/protocol.py)."""
    return ("extends", "protocol") if path.is_relative_to(packaged("configs") / "protocols") else ("extends",)


def names_extended(extends: Node | None, mistakes: list[Mistake]) -> list[Node]:
    """The nodes of the names under `extends`, a name or a list of names."""
    if extends is None or extends.value is None:
        return []
    names = extends.value if isinstance(extends.value, list) else [extends]
    wanted = "extends takes a fragment's name, or a list of names, e.g. [models/llama2-7b]"
    mistakes += [Mistake(node.place, wanted) for node in names if not isinstance(node.value, str)]
    return [node for node in names if isinstance(node.value, str)]


def find_fragment(node: Node, mistakes: list[Mistake]) -> Path | None:
    """The file that one name under `extends` means: beside the recipe first, then packaged fragments and recipes."""
    name = str(node.value)
    for root in (node.folder, packaged("configs"), packaged("recipes")):
        if found := with_ending(root / expanded(name)):
            return found
    known = [*packaged_fragments(), *packaged_recipes()]
    guess = get_close_matches(name.removesuffix(".yaml"), known, n=1, cutoff=0.5)
    hint = f"did you mean {guess[0]}? " if guess else ""
    mistakes.append(Mistake(node.place, f"extends {name}: no such file beside it; {hint}packaged: {', '.join(known)}"))
    return None


def settle_locations(root: Node) -> None:
    """Make paths independent of the folder of the file (or override) that wrote them."""
    for keys in LOCATIONS:
        at = [root]
        for key in keys:
            inner = [child for node in at for child in children(node, key)]
            at = inner
        for node in at:
            if isinstance(node.value, str) and node.value:
                node.value = resolve(node.value, node.folder)


def children(node: Node, key: str) -> list[Node]:
    if key == "*":
        return node.value if isinstance(node.value, list) else []
    child = node.child(key)
    return [] if child is None else [child]
