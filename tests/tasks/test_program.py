"""What is taken out of a completion as the program."""

import ast

import pytest

from soka_cli.tasks.program import cut_program, defines, longest_span, read, sanitized

CODE = "import math\n\ndef f(x):\n    return math.floor(x)\n"
CHAT = f"Sure! Here is the function:\n\n```python\n{CODE}```\n\nIt rounds down, e.g. `f(1.5)` is 1.\n"


def test_as_it_is_means_as_it_is() -> None:
    assert cut_program(CHAT, "none") == CHAT


@pytest.mark.parametrize("word", ["python", "Python", "py", ""])
def test_the_first_fence_of_python_is_the_program(word: str) -> None:
    text = f"Install it:\n```bash\npip install x\n```\nthen:\n```{word}\n{CODE}```\nand\n```python\nprint(1)\n```"
    assert cut_program(text, "fence") == CODE


def test_a_fence_that_is_never_closed_reaches_to_the_end() -> None:
    assert cut_program(f"Here:\n```python\n{CODE}", "fence") == CODE


def test_without_a_fence_everything_is_the_program() -> None:
    assert cut_program(CODE, "fence") == CODE


# PiSSA's script, utils/code_process.py


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (CHAT, CODE.strip()),
        ("def f(x):\n    return x\n\nif __name__ == \"__main__\":\n    f(1)", "def f(x):\n    return x"),
        ("def f(x):\n    return x\n# Example usage\nprint(f(1))", "def f(x):\n    return x"),
        ("def f(x):\n    # we assert nothing\n    return x", "def f(x):\n    # we"),
        ("def assertive(x):\n    return x", "def"),
        ("```python\ndef f(x):\n    return x", "\ndef f(x):\n    return x"),
        ("def f(x):\r\n    return x\r\n", "def f(x):\n    return x\n"),
    ],
)  # fmt: skip
def test_pissa_s_cut_is_pissa_s_with_its_quirks(text: str, program: str) -> None:
    assert cut_program(text, "pissa") == program


# EvalPlus


def test_prose_and_fences_around_a_program_fall_away() -> None:
    assert cut_program(CHAT, "evalplus", ["f"]) == "import math\ndef f(x):\n    return math.floor(x)\n"


def test_what_the_wanted_function_cannot_reach_falls_away() -> None:
    text = "LIMIT = 3\nunused = 1\ndef helper(x):\n    return x + LIMIT\ndef f(x):\n    return helper(x)\nprint(f(1))\nassert f(1) == 9\n"
    assert sanitized(text, ["f"]) == "LIMIT = 3\ndef helper(x):\n    return x + LIMIT\ndef f(x):\n    return helper(x)\n"


def test_decorators_classes_and_several_names_at_once_stay() -> None:
    text = "import functools\nA, B = 1, 2\nclass Node:\n    pass\n@functools.cache\ndef f(x):\n    return Node(), A\n"
    assert sanitized(text, ["f"]) == text


def test_imports_under_try_stay() -> None:
    text = "try:\n    import numpy as np\nexcept ImportError:\n    np = None\ndef f(x):\n    return x\n"
    assert sanitized(text, ["f"]) == text


def test_of_two_definitions_the_first_with_a_return_counts() -> None:
    text = 'def f(x):\n    """To be done."""\ndef f(x):\n    return 1\ndef f(x):\n    return 2\n'
    assert sanitized(text, ["f"]) == "def f(x):\n    return 1\n"


def test_a_generator_counts_as_giving_something() -> None:
    assert "yield" in sanitized("def f(x):\n    yield x\n", ["f"])


def test_a_program_that_defines_nothing_wanted_stays_whole() -> None:
    assert sanitized("def g(x):\n    return x\ng(1)", ["f"]) == "def g(x):\n    return x\ng(1)"


def test_characters_of_several_bytes_do_not_shift_the_cut() -> None:
    assert (
        sanitized("x = 'h\u00e9\u00e9'; y = 1\ndef f(a):\n    return x  # \u00e9\n", ["f"])
        == "x = 'h\u00e9\u00e9'\ndef f(a):\n    return x\n"
    )


def brute_force(text: str) -> str:
    """EvalPlus's own search: every run of lines."""
    lines = text.split("\n")
    best, most = "", 0
    for start in range(len(lines)):
        for end in range(start + 1, len(lines) + 1):
            span = lines[start:end]
            if (count := sum(1 for line in span if line.strip())) > most and not lines[start][:1].isspace():
                try:
                    ast.parse("\n".join(span))
                except SyntaxError:
                    continue
                best, most = "\n".join(span), count
    return best


@pytest.mark.parametrize(
    "text",
    [
        CHAT,
        CODE,
        "no code here at all, sorry",
        "def f(x):\n    return (x\n\ndef g(x):\n    return x\n",
        "x = 1\n'''\nnever closed\ndef f():\n    return 1\n",
        "def f():\n    if True:\nprint(1)\ny = 2\nz = 3",
        "Answer:\ndef f(x):\n    return x\nThis works.\nprint(f(1))\nprint(f(2))\nprint(f(3))",
        "1. First\n2. Second\nx\ny\nz",
        "def f():\n\treturn 1\n        return 2\n\ndef g():\n    return 3",
        "```\na = 1\n```\n```python\nb = 2\nc = 3\n```",
        "else:\n    pass\nx = 1",
    ],
)
def test_the_longest_run_of_lines_is_the_one_that_trying_all_of_them_finds(text: str) -> None:
    found, wanted = longest_span(text), brute_force(text)
    assert [line for line in found.split("\n") if line.strip()] == [line for line in wanted.split("\n") if line.strip()]


@pytest.mark.parametrize(
    "text",
    ["-" * 50_000 + "1", "(" * 50_000, "x" + ".a" * 40_000, "1+" * 40_000 + "1", "if a:\n pass\n" + "elif b:\n pass\n" * 5_000, "x = 1\0"],
)
def test_texts_that_break_parsers_are_just_no_programs(text: str) -> None:
    assert read(text) == 1
    assert isinstance(cut_program(text, "evalplus", ["f"]), str)


def test_a_definition_is_found_at_the_top_only() -> None:
    assert defines("class A:\n    def f(self): pass\ndef g(): pass", "g") and not defines("class A:\n    def f(self): pass", "f")
    assert not defines("def f(:", "f")
