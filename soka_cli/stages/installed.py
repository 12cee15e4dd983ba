"""The packages that soka needs: what is installed, what its metadata allows, and what its tests ran with."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from soka_cli.recipe.places import PACKAGE
from soka_cli.run.environment import package_version

DISTRIBUTION = "soka-cli"
CONSTRAINTS = (PACKAGE / "_data" / "constraints.txt", PACKAGE.parent / "constraints.txt")
"""Where the tested versions lie: inside the wheel, or at the top of a checkout."""
DEVELOPMENT = "dev"


@dataclass(frozen=True)
class Package:
    """One requirement. `extra` is empty for what is always needed; `tested` is None where no constraints file is at hand."""

    name: str
    extra: str
    allowed: str
    installed: str | None
    tested: str | None

    @property
    def problem(self) -> str:
        """What is wrong with it, empty if nothing is: an absent optional package is no problem, one of a wrong version is."""
        if self.installed is None:
            return "" if self.extra else "not installed"
        if not SpecifierSet(self.allowed).contains(self.installed, prereleases=True):
            return f"{self.installed} is outside {self.allowed}"
        return ""

    @property
    def untested(self) -> bool:
        """Installed and allowed, in another version than the tests ran with; a local part such as +cu130 does not count."""
        if self.installed is None or self.tested is None:
            return False
        return self.installed.split("+")[0] != self.tested.split("+")[0]


def packages() -> list[Package]:
    """What soka's own metadata asks for, in its order, without the tools of its development; empty where soka is not installed."""
    tested = tested_versions(constraints_file())
    found = []
    for text in declared():
        requirement = Requirement(text)
        extra = extra_of(requirement)
        if extra != DEVELOPMENT:
            name = requirement.name
            found.append(Package(name, extra, str(requirement.specifier), package_version(name), tested.get(canonicalize_name(name))))
    return found


def declared() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def extra_of(requirement: Requirement) -> str:
    """`quant` for `bitsandbytes; extra == "quant"`, empty for what is always needed."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return ""
    _, _, name = str(requirement.marker).partition('extra == "')
    return name.partition('"')[0]


def constraints_file() -> Path | None:
    """The file of the tested versions; None in an installation that neither has."""
    return next((path for path in CONSTRAINTS if path.is_file()), None)


def tested_versions(constraints: Path | None) -> dict[str, str]:
    """Exact versions by canonical name from a constraints file; empty where there is none."""
    if constraints is None:
        return {}
    lines = (line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    pinned = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in pinned}


def python_problem() -> str:
    """What is wrong with the interpreter's version, empty if nothing is."""
    try:
        allowed = metadata(DISTRIBUTION)["Requires-Python"] or ""
    except PackageNotFoundError:
        return ""
    version = platform.python_version()
    return "" if SpecifierSet(allowed).contains(version, prereleases=True) else f"Python {version} is outside {allowed}"
