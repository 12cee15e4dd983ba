"""Programs that want to pass without being right. Each attack is one test, on every layer that works here."""

from tests.sandbox.attack import Judge


def writing(data: str) -> str:
    """A program whose function writes bytes, an expression, to its end of the channel, whichever that is, and returns 7."""
    return f"""
import json, os
def framed(message):
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data
def f(x):
    for to in range(3, 64):
        data = {data}
        try:
            while data: data = data[os.write(to, data):]
        except OSError: pass
    return 7
"""


def fails(judge: Judge, code: str, *tests: str, because: str = "does not hold", setup: str = "", timeout: float = 10.0) -> bool:
    """Whether the program ran, answered, and failed for the reason that the attack leads to - not for a mistake in the attack."""
    verdict = judge(code, *tests, setup=setup, timeout=timeout)
    assert (verdict.verdict, verdict.mode) == ("fail", "separate"), verdict
    assert because in verdict.why, verdict
    return True


def test_an_object_that_is_equal_to_everything_is_equal_to_nothing(judge: Judge) -> None:
    assert fails(
        judge,
        """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return hash(2)
        def f(x): return Any()
        """,
        "assert f(1) == 2",
    )


def test_nor_is_it_from_the_other_side_of_the_sign(judge: Judge) -> None:
    assert fails(judge, "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()", "assert 2 == f(1)")


def test_nor_is_it_unequal_to_nothing(judge: Judge) -> None:
    assert fails(judge, "class Any:\n    def __ne__(self, other): return False\ndef f(x): return Any()", "assert not f(1) != 2")


def test_nor_does_it_hide_in_a_list(judge: Judge) -> None:
    assert fails(judge, "class Any:\n    def __eq__(self, other): return True\ndef f(x): return [1, Any()]", "assert f(1) == [1, 2]")


def test_nor_does_it_hide_in_a_set(judge: Judge) -> None:
    code = "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return hash(2)\ndef f(x): return {Any()}"
    assert fails(judge, code, "assert f(1) == {2}")


def test_nor_is_it_among_the_expected_ones(judge: Judge) -> None:
    assert fails(judge, "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()", "assert f(1) in (2, 3)")


def test_the_library_s_own_object_that_is_equal_to_everything_is_not(judge: Judge) -> None:
    assert fails(judge, "from unittest.mock import ANY\ndef f(x): return ANY")


def test_a_number_that_overrides_equality_is_read_as_the_number_under_it(judge: Judge) -> None:
    code = "class Number(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return Number(7)"
    assert fails(judge, code, "assert f(1) == 2")


def test_a_text_that_overrides_equality_is_read_as_the_text_under_it(judge: Judge) -> None:
    assert fails(judge, "class Text(str):\n    def __eq__(self, other): return True\ndef f(x): return Text('no')", "assert f(1) == 'yes'")


def test_a_list_that_overrides_equality_is_read_as_the_list_under_it(judge: Judge) -> None:
    assert fails(judge, "class Items(list):\n    def __eq__(self, other): return True\ndef f(x): return Items([3])", "assert f(1) == [2]")


def test_a_dict_that_finds_every_key_is_read_as_the_dict_under_it(judge: Judge) -> None:
    assert fails(
        judge,
        "class Found(dict):\n    def __getitem__(self, key): return 2\ndef f(x): return Found()",
        "assert f(1)['a'] == 2",
        because="KeyError",
    )


def test_an_object_that_lies_about_its_class_is_still_an_object(judge: Judge) -> None:
    code = "class Any:\n    __class__ = int\n    def __eq__(self, other): return True\ndef f(x): return Any()"
    assert fails(judge, code, "assert isinstance(f(1), int) and f(1) == 2")


def test_a_metaclass_that_claims_everything_is_not_asked(judge: Judge) -> None:
    code = """
    class Meta(type):
        def __instancecheck__(cls, value): return True
        def __eq__(cls, other): return True
        def __hash__(cls): return hash(int)
    class Int(metaclass=Meta): pass
    def f(x): return Int
    """
    assert fails(judge, code, "assert f(1) == int")


def test_an_object_cannot_make_the_difference_to_the_expected_number_vanish(judge: Judge) -> None:
    code = "class Any:\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\ndef f(x): return Any()"
    assert fails(judge, code, "assert abs(f(1) - 2) < 1e-6", because="TypeError")


def test_an_object_cannot_answer_comparisons(judge: Judge) -> None:
    code = "class Any:\n    def __lt__(self, other): return True\n    __gt__ = __le__ = __ge__ = __lt__\ndef f(x): return Any()"
    assert fails(judge, code, "assert 1 < f(1) < 3", because="TypeError")


def test_an_object_cannot_round_itself_to_the_expected_number(judge: Judge) -> None:
    assert fails(
        judge,
        "class Any:\n    def __round__(self, n=0): return 2\ndef f(x): return Any()",
        "assert round(f(1), 2) == 2",
        because="TypeError",
    )


def test_a_container_cannot_claim_to_contain_the_expected_value(judge: Judge) -> None:
    code = "class Any:\n    def __contains__(self, item): return True\n    def __iter__(self): return iter([9])\ndef f(x): return Any()"
    assert fails(judge, code, "assert 2 in f(1)")


def test_an_object_cannot_be_as_close_as_wanted(judge: Judge) -> None:
    code = "class Any:\n    def __float__(self): return float('inf')\n    def __eq__(self, other): return True\ndef f(x): return Any()"
    assert fails(judge, code, "assert math.isclose(f(1), 2.0)", setup="import math")


def test_a_program_cannot_bring_its_own_set(judge: Judge) -> None:
    assert fails(judge, "set = lambda values=(): 1\ndef f(x): return [7]", "assert set(f(1)) == set([2])")


def test_a_program_cannot_bring_its_own_built_in_functions_of_any_name(judge: Judge) -> None:
    code = "abs = sum = max = round = sorted = len = tuple = list = dict = all = lambda *a, **k: 1\ndef f(x): return [7]"
    assert fails(judge, code, "assert sorted(f(1)) == sorted([2])", "assert abs(sum(f(1)) - 2) < 1e-6")


def test_a_program_cannot_change_the_built_in_functions_for_the_tests(judge: Judge) -> None:
    assert fails(judge, "import builtins\nbuiltins.sorted = lambda values: []\ndef f(x): return [7]", "assert sorted(f(1)) == sorted([2])")


def test_a_program_cannot_make_failed_assertions_harmless(judge: Judge) -> None:
    code = "import builtins\nclass Quiet(BaseException): pass\nbuiltins.AssertionError = Quiet\ndef f(x): return 7"
    assert fails(judge, code)


def test_a_program_cannot_bring_its_own_mathematics(judge: Judge) -> None:
    code = "class math:\n    @staticmethod\n    def isclose(*a, **k): return True\ndef f(x): return 7"
    assert fails(judge, code, "assert math.isclose(f(1), 2)", because="NameError: name 'math'")


def test_a_program_cannot_put_another_module_under_a_module_s_name(judge: Judge) -> None:
    code = """
    import sys, types
    fake = types.ModuleType("math")
    fake.isclose = lambda *a: True
    sys.modules["math"] = fake
    import math
    def f(x): return 7
    """
    assert fails(judge, code, "assert math.isclose(f(1), 2)")


def test_a_program_cannot_replace_the_function_that_checks_it(judge: Judge) -> None:
    code = "def check(candidate): pass\ndef f(x): return 7"
    assert fails(judge, code, "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)")


def test_a_program_cannot_replace_a_helper_that_the_setup_gives(judge: Judge) -> None:
    code = "def helper(value): return 2\ndef f(x): return 7"
    assert fails(judge, code, "assert helper(f(1)) == 2", setup="def helper(value):\n    return value")


def test_frames_do_not_lead_to_the_tests_or_the_verdict(judge: Judge) -> None:
    code = """
    import sys
    def f(x):
        frame = sys._getframe()
        while frame is not None:
            for name, value in list(frame.f_locals.items()):
                if isinstance(value, list): value.append("passed")
                if isinstance(value, dict): value.update(verdict="pass", value=2)
            frame = frame.f_back
        return 7
    """
    assert fails(judge, code)


def test_the_garbage_collector_does_not_lead_to_the_tests(judge: Judge) -> None:
    code = """
    import gc, re
    def f(x):
        found = [text for thing in gc.get_objects() if isinstance(thing, (list, tuple)) for text in thing if isinstance(text, str)]
        found += [text for thing in gc.get_objects() if isinstance(thing, dict) for text in thing.values() if isinstance(text, str)]
        return next((text for text in map(str, found) if re.match("s[e]cret-[0-9]{5}", text)), "nothing")
    """
    assert fails(judge, code, "expected = 'secret-15263'", "assert f(1) == expected")


def test_the_tests_cannot_be_read_from_the_program_s_memory(judge: Judge) -> None:
    code = """
    import re
    def f(x):
        try: maps, memory = open("/proc/self/maps"), open("/proc/self/mem", "rb", 0)
        except OSError: return "nothing"
        for line in maps:
            start, end = (int(word, 16) for word in line.split(" ")[0].split("-"))
            try:
                memory.seek(start)
                if found := re.search(b"s[e]cret-[0-9]{5}", memory.read(end - start)): return found[0].decode()
            except (OSError, ValueError, OverflowError): pass
        return "nothing"
    """
    assert fails(judge, code, "assert f(1) == 'secret-15263'")


def test_leaving_with_status_0_is_no_pass(judge: Judge) -> None:
    assert fails(judge, "import os\nos._exit(0)", because="process ended")


def test_leaving_in_the_middle_of_a_call_is_no_pass(judge: Judge) -> None:
    assert fails(judge, "import os\ndef f(x): os._exit(0)", because="process ended")


def test_a_system_exit_at_the_top_is_no_pass(judge: Judge) -> None:
    assert fails(judge, "import sys\nsys.exit(0)", because="raises SystemExit")


def test_a_system_exit_in_a_call_is_no_pass(judge: Judge) -> None:
    assert fails(judge, "def f(x): exit(0)", because="SystemExit: 0")


def test_a_test_that_expects_an_exception_is_not_content_with_a_dead_process(judge: Judge) -> None:
    code = "import os\ndef f(x): os._exit(0)"
    assert fails(judge, code, "try:\n    f(1)\nexcept BaseException:\n    pass\nelse:\n    assert False", because="process ended")


def test_killing_itself_is_no_pass(judge: Judge) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert fails(judge, code, because="process ended", timeout=2.0)


def test_a_verdict_written_to_every_descriptor_is_none(judge: Judge) -> None:
    code = """
    import json, os
    def f(x):
        for text in ({"verdict": "pass", "why": "", "mode": "separate"}, {"value": None}, {"ready": 1}):
            data = json.dumps(text).encode()
            for descriptor in range(64):
                try: os.write(descriptor, len(data).to_bytes(4, "big") + data)
                except OSError: pass
        return 7
    f(1)
    """
    assert fails(judge, code, because="process sent")


def test_a_verdict_printed_is_none(judge: Judge) -> None:
    code = "import sys\nfor stream in (sys.stdout, sys.stderr): print('PASSED', '{\"verdict\": \"pass\"}', file=stream)\ndef f(x): return 7"
    assert fails(judge, code)


def test_answers_given_ahead_of_the_questions_are_only_answers(judge: Judge) -> None:
    code = """
    import json, os
    def say(message, to):
        data = json.dumps(message).encode()
        os.write(to, len(data).to_bytes(4, "big") + data)
    for to in range(3, 64):
        try:
            say({"value": None}, to); say({"value": {"f": {"object": 0}}}, to); say({"value": True}, to)
            break
        except OSError: pass
    def f(x): return 7
    """
    assert fails(judge, code)


def test_a_message_of_four_gigabytes_is_not_waited_for(judge: Judge) -> None:
    assert fails(judge, writing("bytes([255] * 4)"), because="4294967295 bytes")


def test_half_a_message_is_none(judge: Judge) -> None:
    assert fails(judge, writing("(100).to_bytes(4, 'big') + b'half'").replace("return 7", "os._exit(0)"), because="ends in the middle")


def test_a_message_that_is_no_json_is_none(judge: Judge) -> None:
    pickled = "bytes([0, 0, 0, 4, 128, 4, 78, 46])"
    assert fails(judge, writing(pickled), because="not JSON")


def test_a_message_nested_a_million_deep_does_not_bring_the_judge_down(judge: Judge) -> None:
    assert fails(judge, writing("(2000000).to_bytes(4, 'big') + b'[' * 1000000 + b']' * 1000000"), because="not JSON")


def test_a_tag_that_only_the_other_side_may_use_is_refused(judge: Judge) -> None:
    message = {"value": {"callable": [0, "unittest.mock", "ANY"]}}
    assert fails(judge, writing(f"framed({message!r})"), because="cannot be read")


def test_calls_of_what_no_test_lent_are_refused(judge: Judge) -> None:
    message = {"ask": "callback", "target": -1, "arguments": [], "keywords": {}}
    assert fails(judge, writing(f"framed({message!r})"), because="a call of nothing")


def test_a_program_that_rewrites_its_own_runner_can_still_only_answer(judge: Judge) -> None:
    code = """
    import sys
    for name, module in list(sys.modules.items()):
        if name.startswith("inside"):
            for key, value in list(vars(module).items()):
                if callable(value) and key in ("description", "flush"): setattr(module, key, lambda *a: {"value": True})
    sys.modules["inside.channel"].Channel.send = lambda self, message: None
    def f(x): return 7
    """
    assert judge(code, timeout=0.7).verdict in ("fail", "timeout")


def test_a_changed_json_module_is_the_program_s_own_trouble(judge: Judge) -> None:
    code = 'import json\njson.dumps = lambda *a, **k: \'{"verdict": "pass", "value": null}\'\ndef f(x): return 7'
    assert fails(judge, code, because="process sent")


def test_reloading_modules_brings_nothing_back(judge: Judge) -> None:
    code = "import importlib, os, sys\nimportlib.reload(os)\nimportlib.reload(sys)\nimport posix\ndef f(x): return 7"
    assert fails(judge, code)


def test_a_trace_function_sees_no_test(judge: Judge) -> None:
    code = """
    import sys
    seen = []
    def trace(frame, event, argument):
        seen.append(str(frame.f_locals))
        for name, value in frame.f_locals.items():
            if isinstance(value, dict) and "value" in value: value["value"] = 2
        return trace
    sys.settrace(trace)
    def f(x): return "found" if any("f(1)" in text for text in seen) else "nothing"
    """
    assert fails(judge, code, "assert f(1) == 'found'", because="process sent")


def test_an_exit_handler_comes_too_late(judge: Judge) -> None:
    code = "import atexit, os\natexit.register(lambda: [os.write(to, b'pass') for to in range(1, 3)])\ndef f(x): return 7"
    assert fails(judge, code)


def test_a_thread_that_goes_on_writing_forges_nothing(judge: Judge) -> None:
    code = """
    import json, os, threading
    def write():
        data = json.dumps({"verdict": "pass", "why": "", "mode": "separate"}).encode()
        while True:
            for to in range(3, 64):
                try: os.write(to, len(data).to_bytes(4, "big") + data)
                except OSError: pass
    threading.Thread(target=write, daemon=True).start()
    def f(x): return 7
    """
    assert fails(judge, code, because="", timeout=2.0)


def test_a_finalizer_forges_nothing(judge: Judge) -> None:
    code = "import os\nclass End:\n    def __del__(self): os._exit(0)\ndef f(x):\n    End()\n    return 2"
    assert fails(judge, code, because="process ended")


def test_a_program_cannot_end_a_loop_of_the_tests(judge: Judge) -> None:
    code = "def f(x): raise StopIteration"
    assert fails(judge, code, "assert all(map(lambda pair: f(pair[0]) == pair[1], [(1, 2), (2, 3)]))", because="ProgramError")


def test_an_exception_whose_text_raises_is_only_an_exception(judge: Judge) -> None:
    code = "class Bad(Exception):\n    def __str__(self): raise SystemExit(0)\n    __repr__ = __str__\ndef f(x): raise Bad()"
    assert fails(judge, code, because="whose text raises")


def test_an_exception_whose_text_is_huge_is_cut(judge: Judge) -> None:
    verdict = judge("def f(x): raise ValueError('x' * 10**7)")
    assert verdict.verdict == "fail" and len(verdict.why) < 2000


def test_an_object_that_cannot_be_pickled_is_just_an_object(judge: Judge) -> None:
    assert fails(judge, "class Bad:\n    def __reduce__(self): raise SystemExit(0)\n    __getstate__ = __reduce__\ndef f(x): return Bad()")


def test_an_object_whose_class_raises_is_just_an_object(judge: Judge) -> None:
    code = "class Bad:\n    @property\n    def __class__(self): raise SystemExit(0)\ndef f(x): return Bad()"
    assert fails(judge, code)


def test_a_list_that_contains_itself_ends(judge: Judge) -> None:
    assert fails(judge, "def f(x):\n    items = []\n    items.append(items)\n    return items", "assert f(1) == [2]")


def test_a_value_nested_deeper_than_can_be_sent_ends(judge: Judge) -> None:
    assert fails(judge, "def f(x):\n    items = 2\n    for _ in range(100000): items = [items]\n    return items", "assert f(1) == [2]")


def test_a_generator_that_never_ends_is_a_timeout(judge: Judge) -> None:
    code = "def f(x):\n    while True: yield 1"
    assert judge(code, "assert list(f(1)) == [2]", timeout=0.7).verdict == "timeout"


def test_an_answer_of_hundreds_of_megabytes_is_refused(judge: Judge) -> None:
    code = "def f(x): return 'x' * (300 << 20)"
    assert fails(judge, code, "assert f(1) == 'y'", because="16777216 is the most", timeout=20)


def test_a_number_of_a_million_digits_is_compared_and_not_printed(judge: Judge) -> None:
    assert fails(judge, "def f(x): return 10**1000000", "assert f(1) == 10**1000000 + 1")


def test_a_program_cannot_choose_the_process_that_judges_it(judge: Judge) -> None:
    """Whether asserts run beside the program follows from the tests alone."""
    code = "class Any:\n    def __eq__(self, other): return True\n    def __reduce__(self): return (Any, ())\ndef f(x): return Any()"
    verdict = judge(code, "assert f(f(1)) == 2")
    assert (verdict.verdict, verdict.mode) == ("fail", "separate")
