"""The pages for people: their blocks, commands and links."""

import re
import shlex
from pathlib import Path

from tests.builders import REPOSITORY

PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\S+\.\w+)\n")
COMMENT = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*")|(?:^|(?<=\s))#[^\n]*""", re.MULTILINE | re.DOTALL)  # or a quoted text, which stays
ENDS = set("();<>|&\n")


def page(name: str) -> Path:
    return REPOSITORY / "docs" / name


def blocks(path: Path, language: str) -> list[str]:
    """The texts of a page's blocks in one language."""
    return [text for found, text in BLOCK.findall(path.read_text(encoding="utf8")) if found == language]


def files(path: Path) -> dict[str, str]:
    """Blocks whose first line names a file, by that name."""
    texts = [text for _, text in BLOCK.findall(path.read_text(encoding="utf8"))]
    return {match[1]: text for text in texts if (match := NAMED.match(text))}


def soka_commands(path: Path) -> list[list[str]]:
    """The words after `soka` of every command of a page that runs it; a program of the page's own counts as soka."""
    return [words for text in blocks(path, "bash") for statement in statements(text) if (words := after_soka(statement))]


def statements(text: str) -> list[list[str]]:
    """The words of each command of a shell's text, without comments and redirections."""
    spoken = COMMENT.sub(lambda match: match[1] or "", text.replace("\\\n", " "))
    lexer = shlex.shlex(spoken, posix=True, punctuation_chars="".join(ENDS))
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    found: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= ENDS:
            found.append([])
        else:
            found[-1].append(token)
    return [words for words in found if words]


def after_soka(words: list[str]) -> list[str]:
    if words[0] == "soka":
        return words[1:]
    if words[0] == "python" and words[1].endswith(".py"):
        return words[2:]
    return words[words.index("soka_cli") + 1 :] if "soka_cli" in words else []
