"""Where packaged files lie, and which file or folder a text in a recipe means."""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from soka_cli.errors import ExitCode, SokaError

PACKAGE = Path(__file__).resolve().parents[1]
SCHEME = "soka:"
DATA_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


def packaged(kind: Literal["recipes", "configs"]) -> Path:
    """The folder of packaged recipes or fragments: inside the wheel, or at the top of a checkout."""
    for folder in (PACKAGE / "_data" / kind, PACKAGE.parent / kind):
        if folder.is_dir():
            return folder
    raise SokaError(
        f"this installation of soka has no {kind}",
        where=str(PACKAGE),
        hint="install it again: pip install --force-reinstall soka-cli",
        exit_code=ExitCode.ENVIRONMENT,
    )


def packaged_recipes() -> list[str]:
    """Names of the packaged recipes, without ending; those of a folder after the others, e.g. ablations/tau."""
    root = packaged("recipes")
    names = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def packaged_fragments() -> list[str]:
    """Names of the packaged fragments as `extends` writes them, e.g. models/llama2-7b."""
    root = packaged("configs")
    found = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")]
    return sorted(name for name in found if not name.startswith("accelerate/"))


def shown(path: Path, folder: Path) -> str:
    """A file as messages and commands name it: from `folder` where it lies below it, a packaged one by its name."""
    for root in (folder, packaged("recipes"), packaged("configs")):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def expanded(text: str | Path) -> Path:
    """The path with ~ spelt out, where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_there(path: Path) -> bool:
    """Whether the path exists; no for one that cannot be asked about (too long, not permitted)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def with_ending(path: Path) -> Path | None:
    """`path` itself, or with .yaml or .yml after it: whichever is a file."""
    candidates = (path, path.with_name(f"{path.name}.yaml"), path.with_name(f"{path.name}.yml")) if path.name else ()
    return next((candidate for candidate in candidates if is_there(candidate) and candidate.is_file()), None)


def find_recipe(name: str | Path, *, folder: Path | None = None) -> Path:
    """A recipe's file: a path first (from `folder`, the current one if None), then a packaged name, `.yaml` optional.

    Raises:
        SokaError: exit 2, listing the packaged recipes.
    """
    path = (folder or Path.cwd()) / expanded(name)
    if found := with_ending(path) or with_ending(packaged("recipes") / name):
        return found
    names = packaged_recipes()
    near = get_close_matches(str(Path(name).with_suffix("")) if Path(name).name else "", names, n=1)
    raise SokaError(
        f"there is no recipe {name}",
        where=str(path),
        why=f"{'it is a folder' if is_there(path) else 'no such file'}; packaged recipes are {', '.join(names) or 'missing'}",
        hint=f"did you mean --recipe {near[0]}.yaml?" if near else "soka recipes lists them; --recipe takes a name or a file",
        exit_code=ExitCode.USAGE,
    )


def locate(text: str) -> str | Path:
    """What a resolved recipe's `name` or `path` means on this machine.

    `soka:demo/model` is the file or folder inside the installed package; the scheme keeps run directories portable.
    An existing path becomes a Path; any other text comes back as it is, a Hub id.

    Raises:
        SokaError: exit 2 for a `soka:` name that the package does not have.
    """
    if text.startswith(SCHEME):
        inside = text.removeprefix(SCHEME)
        path = (PACKAGE / inside).resolve()
        if not inside or not path.is_relative_to(PACKAGE) or not is_there(path):
            raise SokaError(
                f"the package has no {text}", where=str(path), hint="soka:demo/model is the packaged model", exit_code=ExitCode.USAGE
            )
        return path
    path = expanded(text)
    return path if is_there(path) else text


def resolve(text: str, folder: Path) -> str:
    """A location as a recipe in `folder` writes it, made independent of that folder.

    `soka:` names and Hub ids stay. What exists beside the recipe, or can only be a path (./x, ~/x, a data file's ending,
    more than one slash), becomes absolute.
    """
    if text.startswith(SCHEME) or "\0" in text:
        return text
    path = folder / expanded(text)
    only_a_path = text.startswith((".", "~", "/")) or text.endswith(DATA_ENDINGS) or text.strip("/").count("/") > 1
    return str(path.resolve()) if only_a_path or is_there(path) else text
