"""The Python that a sandbox runs, and the files that it has to read for that: nothing of the user's."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from soka_cli.sandbox import bundle
from soka_cli.sandbox.inside.demands import PACKAGES

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
LIBRARY_CACHE = "/etc/ld.so.cache"
STORE = "/nix/store"  # where a package's libraries lie in folders of their own, if the interpreter is one of them
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Strings are hashed alike each time, or a set's order and with it some verdicts would change from run to run.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")  # nothing of a user's or a site's is imported


@dataclass(frozen=True)
class Interpreter:
    """A Python outside of any virtual environment.

    Attributes:
        executable: the interpreter itself, no link to it.
        readable: files and folders that it needs, in full.
        links: (path, target) of the symbolic links at the root, such as most distributions have for /lib.
        search: folders of packages, of which only PACKAGES can be read.
    """

    executable: str
    readable: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    search: tuple[str, ...]

    def command(self, plan: str) -> list[str]:
        """The words that start `inside` with a plan."""
        return [self.executable, *OPTIONS, "-c", bundle.LOADER.format(descriptor=bundle.descriptor()), plan]


@cache
def interpreter() -> Interpreter:
    """The interpreter that soka itself runs on, outside its virtual environment."""
    executable = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    links = tuple((path, str(Path(path).readlink())) for path in SYSTEM if Path(path).is_symlink())
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    libraries = {Path(prefix, name) for prefix in prefixes for name in ("lib", "lib64")}
    packages = [folder for name in PACKAGES for folder in package_folders(name)]
    store = [STORE] if executable.is_relative_to(STORE) else []
    readable = {*SYSTEM, LIBRARY_CACHE, *store, *map(str, (executable, *libraries, *packages))} - {path for path, _ in links}
    return Interpreter(
        executable=str(executable),
        readable=outermost(path for path in readable if Path(path).exists()),
        links=links,
        search=tuple(sorted({str(folder.parent) for folder in packages})),
    )


def package_folders(name: str) -> list[Path]:
    """The folders of an installed package and of the libraries that its wheel brings; none if it is absent."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    return [path for path in (folder, folder.with_name(f"{name}.libs")) if path.is_dir()]


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths that lie under no other of them."""
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path.startswith(f"{outer}/") for outer in kept):
            kept.append(path)
    return tuple(kept)
