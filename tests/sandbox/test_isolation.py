"""What is said of the layers, which one is chosen, and what happens where there is none."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.sandbox import Program, describe, judge, judge_all, system_calls
from soka_cli.sandbox import isolation as module
from soka_cli.sandbox.isolation import Isolation, advice, find_isolation, last_line, passes, stops, try_layer
from soka_cli.sandbox.layer import Layer
from soka_cli.sandbox.worker import Worker
from tests.builders import REPOSITORY
from tests.sandbox.attack import open_to_all

NONE = Isolation(None, {}, (("bubblewrap", "bwrap is not installed"), ("landlock", "the kernel has none, or refuses it")))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing isolates."""
    monkeypatch.setattr("soka_cli.sandbox.pool.find_isolation", lambda: NONE)
    monkeypatch.setattr(module, "find_isolation", lambda: NONE)


def test_without_isolation_nothing_is_run(without: None, tmp_path: Path) -> None:
    verdict = judge(f"open({str(tmp_path / 'ran')!r}, 'w')", ["assert True"])
    assert verdict.verdict == "error" and "bubblewrap" in verdict.why
    assert not list(tmp_path.iterdir())


def test_without_isolation_many_are_refused_with_the_way_to_get_it(without: None) -> None:
    with pytest.raises(SokaError) as caught:
        judge_all([Program("x = 1", ())])
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "apt-get install bubblewrap" in caught.value.hint and "--unsafe-execution" in caught.value.hint


def test_who_insists_gets_verdicts_without_isolation_and_they_say_so(without: None) -> None:
    verdict = judge("def f(x): return x + 1", ["assert f(1) == 2"], unsafe=True)
    assert (verdict.verdict, verdict.layer) == ("pass", "none")
    assert judge_all([Program("x = 1", ("assert x == 2",))], unsafe=True)[0].verdict == "fail"


def test_without_isolation_too_time_memory_and_leftovers_are_bounded(unsafe: Any) -> None:
    assert unsafe("while True: pass", timeout=0.7).verdict == "timeout"
    assert "MemoryError" in unsafe("x = bytearray(4 << 30)").why


def test_who_insists_is_still_isolated_where_that_is_possible() -> None:
    if find_isolation().layer is None:
        pytest.skip("no isolation here")
    assert judge("x = 1", ["assert x == 1"], unsafe=True).layer == find_isolation().name


def test_the_description_names_what_is_stopped_and_what_is_not() -> None:
    text = "\n".join(describe())
    assert find_isolation().name in text or "no isolation" in text
    assert "does not stop" in text
    assert all(line.count("\n") == 0 for line in describe())


def test_the_description_without_isolation_says_how_to_get_it(without: None) -> None:
    assert "no program is run" in "\n".join(describe()) and "apt-get" in "\n".join(describe())
    assert "--unsafe-execution" in "\n".join(describe(unsafe=True))


def test_a_layer_that_lets_something_through_is_refused() -> None:
    report, trouble = try_layer(Layer("none"))
    assert report["reads"] and report["writes"] and report["connects"] and report["signals"]
    assert "can be read" in trouble and "TCP" in trouble


def test_the_next_layer_is_taken_where_bubblewrap_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    find_isolation.cache_clear()
    try:
        found = find_isolation()
        assert found.name != "bubblewrap"
        assert dict(found.refused)["bubblewrap"] == "bwrap is not installed"
        assert "apt-get install bubblewrap" in advice(found)
    finally:
        find_isolation.cache_clear()


def test_a_bubblewrap_that_may_not_make_namespaces_is_explained() -> None:
    found = Isolation(None, {}, (("bubblewrap", "bwrap: setting up uid map: Permission denied"),))
    assert "AppArmor" in advice(found)


def test_the_weaker_layers_say_that_they_are() -> None:
    report = {"processes": None}
    landlock, bubblewrap = Isolation(Layer("landlock"), report, ()), Isolation(Layer("bubblewrap", size=False), report, ())
    assert any("whether a file exists" in line for line in passes(landlock))
    assert any("burst of processes" in line for line in passes(bubblewrap))
    assert any("tmpfs" in line for line in passes(bubblewrap))
    assert any("Landlock" in line for line in stops(landlock))


def test_the_filter_is_not_applied_on_machines_whose_calls_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert system_calls.program() is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_s_jumps_stay_inside_it_and_it_ends_in_an_answer(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    import struct

    monkeypatch.setattr("platform.machine", lambda: machine)
    program = system_calls.program(*system_calls.SIGNALS, *system_calls.GROUPS, *system_calls.ATTRIBUTES)
    assert program is not None
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    assert lines[-1][0] == system_calls.RETURN
    jumps = {system_calls.JUMP_EQUAL, system_calls.JUMP_ABOVE, system_calls.JUMP_ANY_BIT}
    assert all(place + 1 + max(line[1:3]) < len(lines) for place, line in enumerate(lines) if line[0] in jumps)


KERNEL_FILES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/domainname",
    "/proc/sysrq-trigger",
    "/proc/1/oom_score_adj",
    "/proc/1/mem",
)


@pytest.mark.parametrize("file", KERNEL_FILES)
def test_no_variant_of_a_layer_lets_the_kernel_s_settings_be_written(file: str) -> None:
    """Also where soka is root and a sandbox, for want of rights, stays user 0 of a user namespace."""
    code = f"import os\ndef f():\n    os.close(os.open({file!r}, os.O_WRONLY))"
    tried = 0
    for layer in module.candidates():
        if not try_layer(layer)[1]:
            with Worker(layer, spare=0) as worker:
                verdict = worker.judge(Program(code, ("f()",)))
            assert verdict.verdict == "fail" and "Error" in verdict.why, (layer, verdict)
            tried += 1
    if not tried:
        pytest.skip("no isolation here")


def test_the_limit_of_processes_counts_those_of_the_user_where_it_cannot_count_a_sandbox_s_own() -> None:
    own, shared = Layer("bubblewrap", change_user=True), Layer("landlock")
    assert own.confinement()["limits"]["RLIMIT_NPROC"] == 32
    assert shared.confinement()["limits"]["RLIMIT_NPROC"] > 32


def test_the_last_line_of_what_a_layer_said_is_the_reason() -> None:
    assert last_line("a\nb\n") == "b" and last_line("")


# What is left when soka itself is killed


JUDGE_FOREVER = """
import sys
from soka_cli.sandbox.isolation import find_isolation
from soka_cli.sandbox.verdict import Program
from soka_cli.sandbox.worker import Worker
mark = "import ctypes, time\\nctypes.CDLL(None).prctl(15, b'soka-orphan', 0, 0, 0)\\nprint('up')\\ntime.sleep(60)"
worker = Worker(find_isolation(sys.argv[1]).layer)
print("judging", flush=True)
worker.judge(Program(mark, (), timeout=60))
"""


def named(mark: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "comm").read_text().strip() == mark:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def waited_for(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def test_a_sandbox_dies_with_soka_even_by_kill_9(worker: Worker) -> None:
    words = [sys.executable, "-c", JUDGE_FOREVER, worker.layer.name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}) as process:
        assert waited_for(lambda: named("soka-orphan"))
        os.kill(process.pid, signal.SIGKILL)
    assert waited_for(lambda: not named("soka-orphan"))


KILL_WHILE_STARTING = """
import os, sys, time
from pathlib import Path
from soka_cli.sandbox.isolation import find_isolation
from soka_cli.sandbox.process import Sandbox

def started_here():
    words = f'"parent": {os.getpid()},'.encode()
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if words in path.read_bytes()]

layer = find_isolation(sys.argv[1]).layer
for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
    for _ in range(4):
        sandbox = Sandbox(layer, "program")
        time.sleep(delay)
        sandbox.kill()
        sandbox.kill()
print(started_here())
"""


def test_a_sandbox_that_is_killed_while_it_starts_leaves_nothing(worker: Worker) -> None:
    words = [sys.executable, "-c", KILL_WHILE_STARTING, worker.layer.name]
    said = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "[]", said


# As an ordinary user


ORDINARY = """
import sys
sys.path.insert(0, sys.argv[1])
from soka_cli.sandbox.isolation import find_isolation
from soka_cli.sandbox.verdict import Program
from soka_cli.sandbox.worker import Worker
found = find_isolation(sys.argv[2])
if found.layer is None:
    print("skip", dict(found.refused)[sys.argv[2]])
    raise SystemExit
tries = {
    "right": ("def f(x): return x + 1", "assert f(1) == 2"),
    "file": (f"open({sys.argv[3]!r})", ""),
    "socket": ("import socket; socket.socket()", ""),
    "signal": (f"import os; os.kill({__import__('os').getpid()}, 0)", ""),
    "mode": (f"import os; os.chmod({sys.argv[3]!r}, 0)", ""),
    "fork": ("import os, time\\nfor _ in range(200):\\n    if os.fork() == 0: time.sleep(5)", ""),
}
with Worker(found.layer) as worker:
    for name, (code, test) in tries.items():
        print(name, worker.judge(Program(code, (test,), timeout=4)).verdict)
"""


@pytest.mark.parametrize("name", module.NAMES)
def test_an_ordinary_user_is_isolated_too(tmp_path: Path, name: str) -> None:
    """Root's layers make namespaces in another way, so they are tried here as nobody, with a Python that nobody may run."""
    python = Path("/usr/bin/python3")
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user: the other tests cover it")
    if not python.exists() or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode:
        pytest.skip("no Python 3.11 at /usr/bin/python3 that another user may run")
    package = tmp_path / "package"
    shutil.copytree(REPOSITORY / "soka_cli" / "sandbox", package / "soka_cli" / "sandbox")
    for file in ("__init__.py", "errors.py"):
        shutil.copy(REPOSITORY / "soka_cli" / file, package / "soka_cli")
    file = tmp_path / "secret"
    file.write_text("secret")
    open_to_all(tmp_path)
    file.chmod(0o666)
    said = subprocess.run(
        [python, "-B", "-c", ORDINARY, str(package), name, str(file)],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, cwd="/", env={}, check=False,
    )  # fmt: skip
    if said.stdout.startswith("skip"):
        pytest.skip(said.stdout.strip())
    assert said.stdout.split("\n")[:6] == ["right pass", "file fail", "socket fail", "signal fail", "mode fail", "fork fail"], said
