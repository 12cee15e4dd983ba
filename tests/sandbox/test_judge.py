"""What a verdict says of honest programs: right ones pass however they are written, wrong ones fail and say why."""

import threading
import time

import pytest

from soka_cli.sandbox import Program, find_isolation, judge, judge_all
from tests.sandbox.attack import Judge


@pytest.fixture(scope="module", autouse=True)
def needs_isolation() -> None:
    if find_isolation().layer is None:
        pytest.skip("; ".join(f"{name}: {why}" for name, why in find_isolation().refused))


def test_a_right_program_passes() -> None:
    verdict = judge("def add(a, b):\n    return a + b", ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
    assert (verdict.verdict, verdict.mode, verdict.why, verdict.layer) == ("pass", "separate", "", find_isolation().name)


def test_a_wrong_program_fails_and_says_which_test_and_what_came() -> None:
    verdict = judge("def add(a, b):\n    return a - b", ["assert add(1, 0) == 1", "assert add(1, 2) == 3"])
    assert verdict.verdict == "fail"
    assert "add(1, 2) == 3" in verdict.why and "-1" in verdict.why


def test_a_program_without_tests_passes_if_it_runs() -> None:
    assert judge("x = 1", []).passed
    assert not judge("x = 1 / 0", []).passed


@pytest.mark.parametrize(
    ("code", "word"),
    [("def f(:", "SyntaxError"), ("import no_such_module", "ModuleNotFoundError"), ("f = 1 / 0", "ZeroDivisionError"), ("", "NameError")],
)
def test_a_program_that_does_not_run_fails_with_its_error(code: str, word: str) -> None:
    verdict = judge(code, ["assert f(1)"])
    assert verdict.verdict == "fail" and word in verdict.why


def test_characters_that_no_file_can_hold_do_not_stop_the_judge() -> None:
    assert judge("x = '\ud800'", ["assert True"]).verdict == "fail"
    assert judge("x = 1\0", ["assert True"]).verdict == "fail"


def test_windows_line_ends_are_read() -> None:
    assert judge("def f(x):\r\n    y = x\r\n    return y + 1\r\n", ["assert f(1) == 2\r\n"]).passed


def test_what_the_program_prints_is_kept() -> None:
    assert judge("def f(x):\n    print('seen', x)\n    return 2", ["assert f(1) == 2"]).output == "seen 1"


def test_a_guarded_main_block_does_not_run() -> None:
    assert judge("def f(x): return 2\nif __name__ == '__main__':\n    raise SystemExit(1)", ["assert f(1) == 2"]).passed


def test_tests_that_are_no_python_are_an_error_and_no_fail() -> None:
    assert judge("def f(x): return 2", ["assert f(1) = 2"]).verdict == "error"


# Values: whatever the library's own types can carry comes over whole.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("None", "is None"),
        ("True", "is True"),
        ("2 ** 200", "== 2 ** 200"),
        ("-(10 ** 5000)", "== -(10 ** 5000)"),
        ("float('inf')", "== float('inf')"),
        ("1e-320", "== 1e-320"),
        ("3 + 4j", "== 3 + 4j"),
        ("'h\\u00e9\\ud800'", "== 'h\\u00e9\\ud800'"),
        ("b'\\x00\\xff'", "== b'\\x00\\xff'"),
        ("[1, (2, {3: {4, 5}}), frozenset({6})]", "== [1, (2, {3: {4, 5}}), frozenset({6})]"),
        ("range(3)", "== range(3)"),
        ("{'a': [1], (1, 2): None}", "== {'a': [1], (1, 2): None}"),
        ("collections.Counter('aab')", "== {'a': 2, 'b': 1}"),
        ("collections.defaultdict(list, {1: [2]})", "== {1: [2]}"),
        ("collections.defaultdict(lambda: 0, {1: 2})", "== {1: 2}"),
        ("collections.OrderedDict([(1, 2)])", "== {1: 2}"),
        ("collections.deque([1, 2], 2)", "== collections.deque([1, 2])"),
        ("collections.namedtuple('P', 'x y')(1, 2)", "== (1, 2)"),
        ("decimal.Decimal('0.1')", "== decimal.Decimal('0.1')"),
        ("fractions.Fraction(1, 3)", "== fractions.Fraction(1, 3)"),
        ("datetime.date(2020, 2, 29)", "== datetime.date(2020, 2, 29)"),
        ("datetime.timedelta(hours=1)", "== datetime.timedelta(seconds=3600)"),
        ("array.array('i', [1, 2])", "== array.array('i', [1, 2])"),
        ("enum.IntEnum('Color', 'RED')(1)", "== 1"),
        ("int", "is int"),
        ("bytearray(b'ab')", "== bytearray(b'ab')"),
    ],
)
def test_a_value_comes_over_as_it_is(value: str, expected: str) -> None:
    modules = "import array, collections, datetime, decimal, enum, fractions"
    verdict = judge(f"{modules}\ndef f():\n    return {value}", [f"assert f() {expected}"], setup=modules)
    assert (verdict.verdict, verdict.mode) == ("pass", "separate"), verdict


def test_not_a_number_stays_unequal_to_itself() -> None:
    assert judge("def f(): return float('nan')", ["assert f() != f()"]).passed


def test_numpy_can_be_used_where_it_is_installed() -> None:
    pytest.importorskip("numpy")
    code = "import numpy as np\ndef f(x): return np.sqrt(np.float64(x)), np.arange(3).sum()"
    assert judge(code, ["assert f(4) == (2.0, 3)"]).passed


# Objects that stay with the program


TREE = """
class Node:
    def __init__(self, value):
        self.value, self.left, self.right = value, None, None
def total(node):
    return 0 if node is None else node.value + total(node.left) + total(node.right)
"""


def test_the_tests_may_build_objects_of_the_program_s_classes() -> None:
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.right = Node(3)"
    verdict = judge(TREE, ["assert total(root) == 6", "root.value += 10\nassert total(root) == 16"], setup=setup)
    assert (verdict.verdict, verdict.mode) == ("pass", "separate"), verdict


def test_two_objects_of_the_program_s_are_compared_by_the_program() -> None:
    code = "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return self.x == other.x\ndef f(x): return P(x)"
    assert judge(code, ["assert f(1) == P(1)", "assert f(1) != P(2)", "assert isinstance(f(1), P)"]).passed


def test_methods_items_length_iteration_and_with_are_asked_of_the_program() -> None:
    code = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, place): return self.items[place]
    def __enter__(self): return self
    def __exit__(self, *error): self.items.clear()
    def __str__(self): return f"Stack of {len(self)}"
    def __bool__(self): return bool(self.items)
"""
    test = """
s = Stack()
s.push(1); s.push(2); s.push([3])
assert len(s) == 3 and list(s) == [1, 2, [3]] and s[1] == 2 and str(s) == f"{s}" == "Stack of 3" and s
assert s.pop() == [3] and 2 in s and 7 not in s
with s as inner:
    assert inner[0] == 1
assert not s
"""
    verdict = judge(code, [test])
    assert (verdict.verdict, verdict.mode) == ("pass", "separate"), verdict


def test_a_generator_is_iterated_from_outside() -> None:
    code = "def f(n):\n    for i in range(n): yield i * i"
    assert judge(
        code, ["assert list(f(4)) == [0, 1, 4, 9]", "g = f(2)\nassert next(g) == 0 and next(g) == 1 and next(g, None) is None"]
    ).passed


def test_an_argument_that_the_program_changes_is_changed_for_the_tests() -> None:
    code = "def order(items, seen):\n    items.sort()\n    seen['n'] = len(items)\n    items[0].append(9)"
    test = "items, seen = [[3], [1]], {}\norder(items, seen)\nassert items == [[1, 9], [3]] and seen == {'n': 2}"
    assert judge(code, [test]).passed


def test_functions_of_the_tests_are_called_where_they_are() -> None:
    code = "def apply(function, items): return [function(item) for item in items]\ndef key(items, by): return sorted(items, key=by)"
    tests = [
        "calls = []\ndef double(x):\n    calls.append(x)\n    return 2 * x\nassert apply(double, [1, 2]) == [2, 4] and calls == [1, 2]",
        "assert apply(lambda x: key([x, 0], abs), [1]) == [[0, 1]]",
        "assert key(['bb', 'a'], len) == ['a', 'bb']",
    ]
    verdict = judge(code, tests)
    assert (verdict.verdict, verdict.mode) == ("pass", "separate"), verdict


def test_an_exception_that_the_tests_expect_is_one() -> None:
    code = "def f(x):\n    if x < 0: raise ValueError('below')\n    return x"
    test = "try:\n    f(-1)\nexcept ValueError as error:\n    assert 'below' in str(error)\nelse:\n    assert False"
    assert judge(code, [test]).passed


def test_a_failing_callback_is_the_program_s_to_catch() -> None:
    code = "def f(call):\n    try: return call(0)\n    except ZeroDivisionError: return 'caught'"
    assert judge(code, ["assert f(lambda x: 1 / x) == 'caught'"]).passed


def test_the_setup_is_there_for_the_program_too() -> None:
    assert judge("R = math.pi\ndef f(x): return math.floor(R * x)", ["assert f(1) == 3"], setup="import math").passed


def test_a_program_named_like_a_built_in_function_is_judged() -> None:
    assert judge("def sum(a, b): return a + b", ["assert sum(10, 15) == 25"]).passed
    assert not judge("def sum(a, b): return a - b", ["assert sum(10, 15) == 25"]).passed


def test_a_module_that_only_the_program_imports_is_the_real_one_for_the_tests() -> None:
    assert judge("import math\ndef f(x): return x / 3", ["assert math.isclose(f(1), 0.3333333333)"]).passed
    assert judge("def f(x): return x / 3", ["assert math.isclose(f(1), 0.3333333333)"]).verdict == "fail"


# Beside the program


@pytest.mark.parametrize(
    "test",
    [
        "class Sub(Base): pass\nassert Sub().x == 1",
        "try:\n    fail()\nexcept Wrong:\n    pass\nelse:\n    assert False",
        "import asyncio\nassert asyncio.run(later()) == 1",
        "assert count(i for i in range(3)) == 3",
        "async def both():\n    return await later()\nimport asyncio\nassert asyncio.run(both()) == 1",
    ],
)
def test_tests_that_need_the_program_s_classes_run_beside_it_and_the_verdict_says_so(test: str) -> None:
    code = """
class Base: x = 1
class Wrong(Exception): pass
def fail(): raise Wrong
async def later(): return 1
def count(items): return len(list(items))
"""
    right, wrong = judge(code, [test]), judge(code.replace("1", "2").replace("list(items)", "[]").replace("raise Wrong", "pass"), [test])
    assert (right.verdict, right.mode) == ("pass", "in-process"), right
    assert (wrong.verdict, wrong.mode) == ("fail", "in-process"), wrong


def test_beside_the_program_a_verdict_can_be_forged_which_is_why_it_is_said() -> None:
    code = "class Any:\n    def __eq__(self, other): return True\nclass Base: pass\ndef f(x): return Any()"
    verdict = judge(code, ["class Sub(Base): pass", "assert f(1) == 2"])
    assert (verdict.verdict, verdict.mode) == ("pass", "in-process")


# Many


def test_verdicts_keep_the_order_of_the_programs() -> None:
    programs = [Program(f"def f(x): return x + {n % 3}", ("assert f(1) == 2",)) for n in range(9)]
    told: list[int] = []
    verdicts = judge_all(programs, workers=3, told=lambda place, verdict: told.append(place))
    assert [verdict.passed for verdict in verdicts] == [n % 3 == 1 for n in range(9)]
    assert sorted(told) == list(range(9))


def test_no_program_makes_no_verdict() -> None:
    assert judge_all([]) == []


def test_one_program_s_time_is_not_another_s() -> None:
    programs = [Program("while True: pass", (), timeout=0.7), Program("def f(x): return 2", ("assert f(1) == 2",))] * 2
    assert [verdict.verdict for verdict in judge_all(programs, workers=2)] == ["timeout", "pass"] * 2


def test_an_interruption_ends_the_workers() -> None:
    def stop(place: int, verdict: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_all([Program("x = 1", ())] * 50, workers=2, told=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sandbox")]


def test_an_interruption_does_not_wait_for_a_program_that_does_not_end() -> None:
    def stop(place: int, verdict: object) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge_all([Program("import time\ntime.sleep(50)", (), timeout=50), Program("x = 1", ())], workers=2, told=stop)
    assert time.monotonic() - start < 40


def test_a_thread_of_a_thread_may_judge() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(judge("x = 1", ["assert x == 1"])))
    thread.start()
    thread.join()
    assert found[0].passed


def test_the_layers_agree_on_what_is_right(judge: Judge) -> None:
    assert judge("import math, re, collections\ndef f(x): return x + 1").passed
    assert judge("def f(x): return x").verdict == "fail"
