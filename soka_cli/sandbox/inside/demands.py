"""What tests want of a program, read from their text alone: nothing here depends on what the program does."""

import ast
import builtins
import sys
from collections.abc import Iterator

BUILT_IN = frozenset(dir(builtins))
PACKAGES = ("numpy",)  # that a program may use beside the standard library
MODULE_NAMES = frozenset({*sys.stdlib_module_names, *PACKAGES, "np"})


class Demands:
    """Names that tests and setup take from the program.

    Attributes:
        names: those that the program may define. A built-in name is among them only if the tests name nothing else: a program that
            brings its own `set` or `abs` must not decide what the tests compare with it.
        modules: those of them that the tests use as the modules of that name; anything else of that name is none of the program's business.
        one_process: whether the tests need the program's classes in their own process (to derive from, to catch, to await) or do not say
            which of several built-in names is the program's.

    Raises:
        SyntaxError, ValueError: a text that is no Python.
    """

    def __init__(self, setup: str, tests: list[str]) -> None:
        trees = [ast.parse(text) for text in (setup, *tests)]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        own = set(bound(nodes))
        read = {node.id for node in nodes if isinstance(node, ast.Name)}
        foreign = read - BUILT_IN - own
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        self.names = foreign if foreign else called & BUILT_IN
        bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
        self.modules = bases & self.names & MODULE_NAMES
        self.one_process = len(self.names & BUILT_IN) > 1 or any(needs_class(node, own | BUILT_IN) for node in nodes)


def bound(nodes: list[ast.AST]) -> Iterator[str]:
    """Names that the tests define themselves."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def needs_class(node: ast.AST, known: set[str] | frozenset[str]) -> bool:
    """Whether a statement works with a class of the program's itself, not with its objects."""
    if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
        return True
    if isinstance(node, ast.alias):
        return node.name.split(".")[0] == "asyncio"  # a coroutine is run by the loop of its own process
    if isinstance(node, ast.ClassDef):
        concerned: list[ast.AST] = [*node.bases, *(keyword.value for keyword in node.keywords)]
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        concerned = [node.type]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "issubclass":
        concerned = list(node.args)
    else:
        return False
    names = {inner.id for part in concerned for inner in ast.walk(part) if isinstance(inner, ast.Name)}
    return bool(names - known)
