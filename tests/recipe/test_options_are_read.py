"""No option that nothing reads: every field of the schema is looked at by some stage, or what a stage calls."""

import ast
from pathlib import Path

import pytest

import soka_cli
from soka_cli.recipe.options import sections

PACKAGE = Path(soka_cli.__file__).parent
READERS = ("stages", "adapter", "data", "models", "tasks", "kron")
PLANNING = {"plan.py", "memory.py", "sizes.py", "length.py", "dimensions.py", "recipes.py", "report.py"}


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def keys(tree: ast.AST) -> set[str]:
    """Texts between brackets or in a set: sections reach `kron` as plain mappings."""
    found = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    return {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def read_anywhere() -> set[str]:
    files = [path for folder in READERS for path in (PACKAGE / folder).rglob("*.py") if path.name not in PLANNING]
    assert len(files) > 20, "the stages are not where this test looks for them"
    trees = {path: ast.parse(path.read_text(encoding="utf8")) for path in files}
    looked_at = [attributes(tree) for tree in trees.values()]
    return set().union(*looked_at, *(keys(tree) for path, tree in trees.items() if path.parent.name == "kron"))


OPTIONS = [(section.__name__, name) for section in sections() for name in section.model_fields]


@pytest.fixture(scope="module")
def read() -> set[str]:
    return read_anywhere()


def test_the_whole_schema_is_walked() -> None:
    assert len(OPTIONS) > 50
    assert {"RankSection", "EvalSection", "BlockShape", "ExplicitShape", "ValidationSection"} <= {section for section, _ in OPTIONS}


@pytest.mark.parametrize(("section", "name"), OPTIONS)
def test_an_option_is_read_by_a_stage(section: str, name: str, read: set[str]) -> None:
    assert name in read


@pytest.mark.parametrize("name", ["min_lr", "resume_from_checkpoint_of", "dropout_rate_of_factors"])
def test_an_option_that_nothing_reads_would_be_found(name: str, read: set[str]) -> None:
    assert name not in read
