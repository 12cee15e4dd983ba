"""Cutting a program out of a completion. The text is parsed and never compiled: it is a model's."""

import ast
import re
import warnings
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import Literal

Postprocessing = Literal["none", "fence", "span", "evalplus", "pissa"]

LONGEST = 100_000  # characters that are looked at; a longer completion is no answer
FENCE = re.compile(r"^[ \t]*```[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<content>.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
PYTHON = ("python", "py", "python3", "")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def cut_program(completion: str, how: Postprocessing, wanted: Collection[str] = ()) -> str:
    """The program in a completion.

    Args:
        how: none takes the completion as it is. fence takes the first fenced block of Python, or all where none is. span does the
            same, and where that is no Python takes the longest run of lines that is. evalplus is `sanitized`, pissa `cut_as_pissa`.
        wanted: names that the tests take from the program.
    """
    if how == "none":
        return completion
    text = completion[:LONGEST].replace("\r\n", "\n")
    if how == "pissa":
        return cut_as_pissa(text)
    if how == "evalplus":
        return sanitized(text, wanted)
    block = fenced(text)
    return block if how == "fence" or parsed(block) is not None else longest_span(text)


def fenced(text: str) -> str:
    """The first fenced block that is Python or says nothing, closed or not; the whole text where there is none."""
    blocks = [match["content"] for match in FENCE.finditer(text) if match["language"].lower() in PYTHON]
    return blocks[0] if blocks else text


def cut_as_pissa(text: str) -> str:
    """What GraphPKU/PiSSA's utils/code_process.py leaves: from the first ```python on, and up to a main guard, an example of use, or
    the first occurrence of the letters `assert` wherever they stand."""
    text = text.replace("\r", "")
    if "```python" in text:
        text = text[text.index("```python") :].strip().replace("```python", "")
        text = text.partition("\n```")[0].strip() if "\n```" in text else text
    for mark in ('if __name__ == "__main__":', "# Example usage", "assert"):
        if mark in text:
            text = text[: text.index(mark)].strip()
    return text


def sanitized(text: str, wanted: Collection[str]) -> str:
    """EvalPlus's post-processing (evalplus/sanitize.py) with the standard library's parser.

    The longest run of lines that parses; of that the imports, and of each name the first definition, assignment or class that one
    of `wanted` can reach. Functions without return or yield count for nothing. Beyond EvalPlus: imports under `try`, several names
    assigned at once, and a run that defines none of `wanted` stays whole.
    """
    span = longest_span(text)
    tree = parsed(span)
    if tree is None:
        return span
    imports = [node for node in tree.body if is_import(node)]
    named = list(first_bindings(tree.body))
    if wanted:
        reached = reachable(wanted, named)
        if not any(name in wanted for _, names in named for name in names):
            return span
        named = [(node, names) for node, names in named if names & reached]
    kept = [*imports, *(node for node, _ in named)]
    return "\n".join(source(span, node) for node in kept) + "\n"


def longest_span(text: str) -> str:
    """Of all runs of lines that are Python, the one with the most lines that are not blank; the first of several."""
    lines = text.split("\n")
    above = [0, *accumulate(bool(line.strip()) for line in lines)]  # filled lines before each line
    best = (0, 0)
    for start, line in enumerate(lines):
        most = above[best[1]] - above[best[0]]
        if line.strip() and not line[0].isspace() and above[-1] - above[start] > most:
            end = farthest_end(lines, start, most, above)
            if above[end] - above[start] > most:
                best = (start, end)
    return "\n".join(lines[best[0] : best[1]])


def farthest_end(lines: list[str], start: int, most: int, above: list[int]) -> int:
    """The end of the longest run from `start` that parses; gives up where it could not have more than `most` filled lines.

    No longer run can parse than one that ends before the line of the first mistake.
    """
    end = len(lines)
    while above[end] - above[start] > most:
        found = read("\n".join(lines[start:end]))
        if isinstance(found, ast.Module):
            return end
        end = max(start, min(end - 1, start + found - 1))
    return start


def read(text: str) -> ast.Module | int:
    """The tree of a text, or the line (1-based) at which it stops being Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a model's strings escape
            return ast.parse(text)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):  # null characters, or nested beyond what the parser follows
        return 1


def parsed(text: str) -> ast.Module | None:
    """The tree of a text that is Python, None for another."""
    found = read(text)
    return found if isinstance(found, ast.Module) else None


def is_import(node: ast.stmt) -> bool:
    """An import, or a `try` that is about nothing but imports."""
    if isinstance(node, ast.Try):
        return all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in node.body)
    return isinstance(node, ast.Import | ast.ImportFrom)


def first_bindings(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, set[str]]]:
    """Definitions, classes and assignments with the names that they are the first to bind."""
    seen: set[str] = set()
    for node in body:
        names = bound_names(node) - seen
        if names:
            seen |= names
            yield node, names


def bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        gives = any(isinstance(inner, ast.Return | ast.Yield | ast.YieldFrom) for inner in ast.walk(node))
        return {node.name} if gives else set()
    if isinstance(node, ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return set()


def reachable(wanted: Collection[str], named: list[tuple[ast.stmt, set[str]]]) -> set[str]:
    """`wanted` and every name that their statements mention, theirs in turn, and so on."""
    mentions = {name: {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} for node, names in named for name in names}
    reached, waiting = set(wanted), list(wanted)
    while waiting:
        new = mentions.get(waiting.pop(), set()) - reached
        reached |= new
        waiting.extend(new)
    return reached


def source(text: str, node: ast.stmt) -> str:
    """A statement's own words, decorators included; columns are counted in bytes."""
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    lines = [line.encode() for line in text.split("\n")[first - 1 : node.end_lineno]]
    lines[-1] = lines[-1][: node.end_col_offset]
    if first == node.lineno:
        lines[0] = lines[0][node.col_offset :]
    return b"\n".join(lines).decode()


def defines(program: str, name: str) -> bool:
    """Whether a program defines a function or class of that name at its top."""
    tree = parsed(program)
    return tree is not None and any(isinstance(node, Definition) and node.name == name for node in tree.body)
