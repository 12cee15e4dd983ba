"""Equality as mathematical objects: the known false verdicts of Math-Verify, the limits, and the process that is killed."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from soka_cli.tasks import symbolic
from soka_cli.tasks.latex_text import LONGEST, difference, refusal, same_words, tidy
from soka_cli.tasks.symbolic import SECONDS, WORKER, Worker, math_verify_equal, minerva_equal, symbolic_equal


def same(gold: str, answer: str) -> bool:
    return symbolic_equal(gold, answer)[0]


FALSE_POSITIVES = {
    "one minus 1/e is not one plus 1/e": (r"1-\frac1e", r"1+\frac1e"),
    "2^-99 is not 2^-98": (r"\frac1{2^{99}}", r"\frac1{2^{98}}"),
    "1/2004! is not 1/2006!": (r"\frac1{2004!}", r"\frac1{2006!}"),
    "a numeral in base 5 is none in base 6": ("204_5", "204_6"),
    "an equation is not its right side": ("x+y=1", "1"),
    "a value is not an equation's right side": ("1", "x+y=1"),
    "a point is not a set": ("(3,4)", r"\{3,4\}"),
    "a set is not a point": (r"\{3,4\}", "(3,4)"),
    "hours are not minutes": ("5 hours", "5 minutes"),
    "hours are not minutes in text": (r"5\text{ hours}", r"5\text{ minutes}"),
    "centimetres are not square centimetres": (r"5\text{ cm}", r"5\text{ cm}^2"),
    "degrees are not radians": (r"90^\circ", r"90\text{ radians}"),
    "half-open on the right is not half-open on the left": ("[1,2)", "(1,2]"),
    "small decimals differ": ("0.0000001", "0.0000002"),
    "small exponentials differ": ("e^{-100}", "e^{-101}"),
    "small terms beside a variable differ": (r"x+\frac1{2^{99}}", r"x+\frac1{2^{98}}"),
    "small members of sets differ": (r"\{\frac1{2^{99}},1\}", r"\{\frac1{2^{98}},1\}"),
    "small values of a name differ": (r"x=\frac1{2^{99}}", r"x=\frac1{2^{98}}"),
    "small entries of matrices differ": (
        r"\begin{pmatrix}\frac1{2^{99}}\\1\end{pmatrix}",
        r"\begin{pmatrix}\frac1{2^{98}}\\1\end{pmatrix}",
    ),
    "thousands are no list of equal numbers": (r"111, \! 111, \! 111", "111"),
    "letters in another order are another word": (r"\text{odd}", "ddo"),
    "points are ordered": ("(2,1)", "(1,2)"),
    "an inequality is not its neighbour": ("x<2", r"x\le 2"),
}


@pytest.mark.parametrize(("gold", "answer"), FALSE_POSITIVES.values(), ids=FALSE_POSITIVES.keys())
def test_a_known_false_positive_is_not_equal(gold: str, answer: str) -> None:
    assert not same(gold, answer)


FALSE_NEGATIVES = {
    "a full stop inside the braces": (r"\frac12", r"\frac12."),
    "a vulgar fraction in Unicode": (r"\frac12", "½"),
    "a root in Unicode": (r"\sqrt2", "√2"),
    "a root of a bracket in Unicode": (r"\sqrt{x+1}", "√(x+1)"),
    "an exponent in Unicode": ("x^{12}", "x¹²"),
    "a minus in Unicode": ("-3", "−3"),
    "pi in Unicode": (r"2\pi", "2π"),
    "a function's value behind its name": ("f(3)=7", "7"),
    "a percentage": (r"10\%", "10"),
    "a percentage as a decimal": (r"10\%", "0.1"),
    "thousands": (r"\dfrac{1}{29,\!322,\!216}", r"\frac{1}{29322216}"),
    "an amount of money": (r"\$32,348", "32348"),
}


@pytest.mark.parametrize(("gold", "answer"), FALSE_NEGATIVES.values(), ids=FALSE_NEGATIVES.keys())
def test_a_known_false_negative_is_equal(gold: str, answer: str) -> None:
    assert same(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"2\sqrt3", r"\sqrt{12}"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\sin^2 x+\cos^2 x", "1"),
        (r"2\frac12", r"\frac52"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("1,2", "x=1, x=2"),
        ("(1,2)", "( 1 , 2 )"),
        ("1<x<2", "(1,2)"),  # the gold inequality may be answered by its interval
        ("y=2x+3", "2x+3"),
        ("5", "x=5"),
        ("AB=5", "5"),
        ("5", "2+3=5"),
        ("204_5", "204"),  # the question names the base
        (r"12\text{ cm}^2", "12"),
        (r"12\text{ cm}^2", r"12 \text{ square centimeters}"),
        (r"\text{(A)}", "A"),
        (r"\text{Evelyn}", "evelyn"),
        (r"\frac13", "0.333333"),
        (r"\frac1{2^{99}}", "2^{-99}"),
        ("5^{12}", "244140625"),
        ("2x-y=0", "y=2x"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\ 2\end{pmatrix}"),
    ],
)
def test_what_is_the_same_is_equal(gold: str, answer: str) -> None:
    assert same(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "6"),
        ("(1,2)", "1<x<2"),  # only the gold answer's inequality is taken for an interval
        (r"\frac13", "0.33"),
        ("x^2", "x^3"),
        (r"\text{(A)}", "B"),
        (r"\text{even}", "x is even"),
        ("y=2x", "y=3x"),
        ("204_5", "54"),
        ("", "0"),
        ("5", ""),
    ],
)
def test_what_is_not_the_same_is_not_equal(gold: str, answer: str) -> None:
    assert not same(gold, answer)


BOMBS = {
    "a tower of powers": "9^{9^{9^{9}}}",
    "a factorial of a hundred million": "100000000!",
    "factorials of factorials": "((10!)!)!",
    "an exponent of a million": "x^{1000000}",
    "a binomial coefficient of millions": r"\binom{10000000}{5000000}",
    "five thousand digits": "9" * 5000,
    "brackets inside brackets": "(" * 300 + "1" + ")" * 300,
    "more characters than an answer has": "1+" * LONGEST + "1",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_without_being_tried(bomb: str) -> None:
    equal, why = symbolic_equal("1", bomb)
    assert not equal
    assert why is not None and why.startswith("the answer ")


def _pid() -> int:
    same("2", "1+1")
    assert WORKER.process is not None
    return WORKER.process.pid


def test_an_answer_that_takes_too_long_is_not_equal_and_the_next_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, "symbolic", 1.0)
    before = _pid()
    assert symbolic_equal("(x+1)^{1000}", "(x+1)^{1001}") == (False, "it takes more than 1 seconds")
    assert not psutil.pid_exists(before)
    assert same("2", "1+1")


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_a_worker_that_was_killed_is_replaced(worker: Worker) -> None:
    assert worker.ask("symbolic", "2", "1+1")[0]
    assert worker.process is not None
    worker.process.kill()
    worker.process.wait()
    assert worker.ask("symbolic", "2", "1+1")[0]


def test_a_worker_that_is_killed_while_it_judges_is_asked_again(worker: Worker) -> None:
    worker.ask("symbolic", "2", "1+1")
    assert worker.process is not None
    worker.process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(0.2, worker.process.kill)
    timer.start()
    assert worker.ask("symbolic", "2", "1+1")[0]


def test_an_answer_over_which_every_worker_dies_is_not_equal(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def mortal() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(symbolic, "_start", mortal)
    assert worker.ask("symbolic", "2", "1+1") == (False, "the judge's process died of it")


def test_a_worker_without_a_parent_ends_by_itself() -> None:
    question = {"judge": "symbolic", "first": "(x+1)^{1000}", "second": "(x+1)^{1001}", "seconds": 1}
    command = [sys.executable, "-m", "soka_cli.tasks.symbolic_worker"]
    done = subprocess.run(command, input=json.dumps(question) + "\n", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGXCPU
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"ready": True}]


def test_memory_that_an_answer_takes_is_limited(worker: Worker) -> None:
    worker.ask("symbolic", "2", "1+1")
    assert worker.process is not None
    assert psutil.Process(worker.process.pid).rlimit(psutil.RLIMIT_AS)[0] == 2 << 30


def test_the_worker_sees_none_of_the_users_secrets(monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    worker.ask("symbolic", "2", "1+1")
    assert worker.process is not None
    assert b"secret" not in Path(f"/proc/{worker.process.pid}/environ").read_bytes()


def test_a_killed_parent_leaves_no_worker_behind(tmp_path: Path) -> None:
    program = (
        "import time\nfrom soka_cli.tasks.symbolic import WORKER, symbolic_equal\nsymbolic_equal('2', '1+1')\n"
        "print(WORKER.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_two_whole_numbers_are_compared_without_a_process() -> None:
    WORKER.close()
    assert same("12", "012")
    assert not same("12", "-12")
    assert WORKER.process is None


def test_several_threads_share_one_worker() -> None:
    found: dict[int, bool] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: same(str(n), f"{n - 1}+1")})) for n in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(2, 8), True)


def test_modules_in_the_users_folder_are_not_taken_for_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Worker
) -> None:
    (tmp_path / "sympy.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert worker.ask("symbolic", "2", "1+1")[0]


@pytest.mark.parametrize("text", ["\n\n5", "5\u2028", '"5\\', "\ud83d", "\x00", "\x1b[31m5"])
def test_line_breaks_quotes_and_half_characters_do_not_derail_the_worker(text: str) -> None:
    same("5", text)
    assert same("5", "2+3")
    assert not same("5", "6")


def test_no_text_is_run_as_python(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for text in (f"__import__('os').mkdir('{trace}')", f"\\text{{__import__('os').mkdir('{trace}')}}", f"$eval(\"open('{trace}','w')\")$"):
        same("5", text)
        math_verify_equal("$5$", text)
        minerva_equal("5", text)
    assert not trace.exists()


def test_whole_texts_are_judged_as_the_harness_does() -> None:
    assert math_verify_equal(r"So $x=\boxed{\frac12}$.", "The final answer is $0.5$. I hope it is correct.")[0]
    assert math_verify_equal(r"$\boxed{\frac1{2^{99}}}$", r"$\boxed{\frac1{2^{98}}}$")[0]  # its faults are kept
    assert not math_verify_equal(r"$\boxed{5}$", "no number")[0]


def test_minervas_equality_is_of_text_or_of_sympy() -> None:
    assert minerva_equal("(1,2)", "(1,2)")[0]
    assert minerva_equal(r"\frac{1}{2}", "0.5")[0]
    assert not minerva_equal("(2,1)", "(1,2)")[0]  # its parser knows no tuples
    assert not minerva_equal("5", "6")[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$5$", "5"),
        ("$$5$$", "5"),
        (r"\(5\)", "5"),
        (r"\[ 5 \]", "5"),
        ("5.", "5"),
        (r"\left\{ x \right.", r"\left\{ x \right."),
        (r"\$5", "5"),
        ("a\n b", "a b"),
        ("$x=1$ and $x=2$", "$x=1$ and $x=2$"),
        (r"10,\!000", "10000"),
        ("2½", r"2\frac{1}{2}"),
        ("⅓", r"\frac{1}{3}"),
        ("x²y⁻¹", "x^{2}y^{-1}"),
        ("√12", r"\sqrt{12}"),
        ("√{12}", r"\sqrt{12}"),
        ("3×4", r"3\times 4"),
    ],
)
def test_one_spelling_stands_for_many(text: str, wanted: str) -> None:
    assert tidy(text) == wanted


def test_a_persons_answers_are_not_refused() -> None:
    for text in ("2^{99}", "2004!", r"\frac{1}{10^{10}}", r"\binom{100}{50}", "((((1))))", "1" * 50):
        assert refusal(text) is None


def test_a_bare_number_counts_for_any_unit_base_and_bracket() -> None:
    for gold, answer in ((r"5\text{ cm}", "5"), ("204_5", "204"), (r"\{1,2\}", "1,2"), ("5x", r"5\text{ cm}")):
        assert difference(gold, answer) is None


def test_words_are_compared_where_the_gold_answer_says_that_it_is_words() -> None:
    assert same_words(r"\text{June 20}", "june 20") is True
    assert same_words(r"\text{June 20}", "20") is None
    assert same_words(r"\text{east}", "seat") is False
    assert same_words("east", "seat") is None


def test_verdicts_are_one_line_of_json_each() -> None:
    command = [sys.executable, "-m", "soka_cli.tasks.symbolic_worker"]
    questions = [{"judge": "symbolic", "first": "2", "second": second, "seconds": 5} for second in ("1+1", "x")]
    done = subprocess.run(
        command, input="".join(json.dumps(one) + "\n" for one in questions), capture_output=True, text=True, check=True, timeout=120
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"ready": True},
        {"equal": True, "why": None},
        {"equal": False, "why": None},
    ]
