"""Programs that want out: one attack a test, on every layer that works here, looked at from outside where that can be done."""

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.attack import Judge, achieved, from_libc, open_to_all, refused

SECRET = "a word that stays outside"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that anybody may read and write, with a file in it: only the sandbox keeps a program off."""
    open_to_all(tmp_path)
    file = tmp_path / "secret"
    file.write_text(SECRET, encoding="utf8")
    file.chmod(0o666)
    return file


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        yield listening


def nobody_came(listening: socket.socket) -> bool:
    with pytest.raises(TimeoutError):
        listening.accept()
    return True


def unchanged(outside: Path) -> bool:
    return outside.read_text(encoding="utf8") == SECRET and [path.name for path in outside.parent.iterdir()] == ["secret"]


# Without isolation these go through, so the tests below say something.


def test_without_isolation_a_file_can_be_read(unsafe: Judge, outside: Path) -> None:
    assert achieved(unsafe, f"result = open({str(outside)!r}).read()") == SECRET


def test_without_isolation_a_file_can_be_written(unsafe: Judge, outside: Path) -> None:
    achieved(unsafe, f"result = open({str(outside)!r}, 'w').write('overwritten')")
    assert not unchanged(outside)


def test_without_isolation_a_connection_goes_through(unsafe: Judge, server: socket.socket) -> None:
    steps = f"import socket\nresult = socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
    achieved(unsafe, steps)
    server.accept()[0].close()


def test_without_isolation_the_parent_can_be_signalled(unsafe: Judge) -> None:
    assert achieved(unsafe, f"import os\nresult = os.kill({os.getpid()}, 0)") == "None"


# Files


def test_a_file_outside_cannot_be_read(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"result = open({str(outside)!r}).read()")


def test_a_file_outside_cannot_be_written(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"result = open({str(outside)!r}, 'w').write('overwritten')") and unchanged(outside)


def test_a_file_outside_cannot_be_created(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"result = open({str(outside.parent / 'new')!r}, 'w').write('new')") and unchanged(outside)


def test_a_file_outside_cannot_be_deleted(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nresult = os.remove({str(outside)!r})") and unchanged(outside)


def test_a_file_outside_cannot_be_renamed(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nresult = os.rename({str(outside)!r}, {str(outside) + '2'!r})") and unchanged(outside)


def test_a_file_outside_cannot_be_truncated(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nresult = os.truncate({str(outside)!r}, 0)") and unchanged(outside)


def test_the_mode_of_a_file_outside_cannot_be_changed(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nresult = os.chmod({str(outside)!r}, 0o777)")
    assert outside.stat().st_mode & 0o777 == 0o666


def test_the_times_of_a_file_outside_cannot_be_changed(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nresult = os.utime({str(outside)!r}, (1, 1))")
    assert outside.stat().st_mtime > 1


def test_a_folder_outside_cannot_be_listed(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nresult = os.listdir({str(outside.parent)!r})")


def test_a_symbolic_link_leads_nowhere_outside(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nos.symlink({str(outside)!r}, '/tmp/link')\nresult = open('/tmp/link').read()")


def test_a_hard_link_leads_nowhere_outside(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"import os\nos.link({str(outside)!r}, '/tmp/link')\nresult = open('/tmp/link').read()")


def test_dots_lead_nowhere_outside(judge: Judge, outside: Path) -> None:
    assert refused(judge, f"result = open('/tmp/' + '../' * 40 + {str(outside)[1:]!r}).read()")


@pytest.mark.parametrize("link", ["root", "cwd"])
@pytest.mark.parametrize("process", ["self", "1", "parent"])
def test_the_links_of_proc_lead_nowhere_outside(judge: Judge, outside: Path, process: str, link: str) -> None:
    which = str(os.getpid()) if process == "parent" else process
    assert refused(judge, f"result = open('/proc/{which}/{link}' + {str(outside)!r}).read()")


def test_descriptors_of_the_parent_are_not_inherited(judge: Judge, outside: Path) -> None:
    with outside.open() as file:
        os.set_inheritable(file.fileno(), True)
        steps = f"import os\nresult = os.fstat({file.fileno()}).st_ino"
        assert achieved(judge, steps) != str(outside.stat().st_ino)


def test_no_descriptor_but_the_streams_and_the_channel_is_open(judge: Judge) -> None:
    steps = """
    import os
    result = []
    for number in range(64):
        try: os.fstat(number)
        except OSError: continue
        result.append(number)
    """
    found = achieved(judge, steps)
    assert len(found.split(",")) == 4 and found.startswith("[0, 1, 2,"), found


def test_a_device_cannot_be_made(judge: Judge) -> None:
    assert refused(judge, "import os, stat\nresult = os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))")


def test_the_disks_cannot_be_opened(judge: Judge) -> None:
    for path in ("/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mem", "/dev/kmsg"):
        assert refused(judge, f"result = open({path!r}, 'rb')")


def test_nothing_can_be_mounted(judge: Judge) -> None:
    assert refused(judge, from_libc("libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)"))


def test_the_root_cannot_be_changed(judge: Judge) -> None:
    assert refused(judge, "import os\nresult = os.chroot('/tmp')")


@pytest.mark.parametrize("space", [0x10000000, 0x20000, 0x20000000, 0x40000000])
def test_no_namespace_can_be_made(judge: Judge, space: int) -> None:
    assert refused(judge, from_libc(f"libc.unshare({space})"))


def test_no_namespace_can_be_made_with_a_new_process(judge: Judge) -> None:
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    assert refused(judge, from_libc(f"libc.syscall({number}, 0x10000000 | 17, 0, 0, 0, 0)"))


def test_no_right_can_be_won_back(judge: Judge) -> None:
    assert refused(judge, "import os\nos.setuid(0) if os.getuid() else os.setuid(12345)\nopen('/tmp/../etc/shadow')\nresult = 'root'")


def test_a_program_with_a_set_user_bit_gains_nothing(judge: Judge) -> None:
    steps = """
    import os, subprocess
    done = subprocess.run(["/usr/bin/su", "-c", "id -u"], capture_output=True, text=True)
    result = "root" if done.stdout.strip() == "0" and os.getuid() else "nothing"
    """
    assert achieved(judge, steps) != "root"


# Disk


def test_the_place_for_files_is_small(judge: Judge) -> None:
    steps = """
    import os
    result = 0
    for number in range(1000):
        with open(f"/tmp/{number}", "wb") as file:
            for _ in range(10): result += file.write(b"x" * (1 << 20))
    """
    assert refused(judge, steps)


def test_one_file_is_bounded(judge: Judge) -> None:
    steps = """
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open("/tmp/a", "wb") as file:
        file.seek(1 << 40)
        result = file.write(b"x")
        file.flush()
    """
    assert refused(judge, steps)


def test_shared_memory_is_small(judge: Judge) -> None:
    steps = """
    result = 0
    for number in range(100):
        with open(f"/dev/shm/{number}", "wb") as file: result += file.write(b"x" * (20 << 20))
    """
    assert refused(judge, steps)


@pytest.mark.parametrize("place", ["/", "/dev", "/usr", "/usr/lib", "/proc"])
def test_no_other_place_can_be_written(judge: Judge, place: str) -> None:
    assert refused(judge, f"result = open('{place}/written', 'w').write('x')")


def test_memory_that_no_limit_counts_cannot_be_had(judge: Judge) -> None:
    assert refused(judge, "import os\nresult = os.memfd_create('hidden')")


def test_shared_memory_that_outlives_the_program_cannot_be_had(judge: Judge) -> None:
    assert refused(judge, from_libc("libc.shmget(0, 1 << 20, 0o1666)"))


# Network


def test_no_tcp_connection_goes_out(judge: Judge, server: socket.socket) -> None:
    steps = f"import socket\nresult = socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
    assert refused(judge, steps) and nobody_came(server)


def test_no_tcp_port_is_opened(judge: Judge) -> None:
    assert refused(judge, "import socket\nresult = socket.create_server(('127.0.0.1', 0))")


def test_no_udp_packet_goes_out(judge: Judge) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(0.05)
        there = ("127.0.0.1", listening.getsockname()[1])
        assert refused(judge, f"import socket\nresult = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', {there})")
        with pytest.raises(TimeoutError):
            listening.recv(1)


def test_no_unix_socket_of_a_path_is_reached(judge: Judge, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        listening.settimeout(0.05)
        assert refused(judge, f"import socket\nresult = socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})")
        assert nobody_came(listening)


def test_no_abstract_unix_socket_is_reached(judge: Judge) -> None:
    name = f"\0soka-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        listening.settimeout(0.05)
        assert refused(judge, f"import socket\nresult = socket.socket(socket.AF_UNIX).connect({name!r})")
        assert nobody_came(listening)


@pytest.mark.parametrize(
    "kind",
    [
        "socket.AF_INET6, socket.SOCK_STREAM",
        "socket.AF_NETLINK, socket.SOCK_RAW",
        "socket.AF_PACKET, socket.SOCK_RAW",
        "socket.AF_INET, socket.SOCK_RAW, 1",
        "socket.AF_VSOCK, socket.SOCK_STREAM",
        "socket.AF_ALG, socket.SOCK_SEQPACKET",
    ],
)
def test_no_socket_of_another_kind_is_made(judge: Judge, kind: str) -> None:
    assert refused(judge, f"import socket\nresult = socket.socket({kind})")


def test_no_name_is_looked_up(judge: Judge) -> None:
    assert refused(judge, "import socket\nresult = socket.getaddrinfo('example.org', 80)", "gaierror")


def test_the_kernel_s_rings_make_no_socket_either(judge: Judge) -> None:
    assert refused(judge, from_libc("libc.syscall(425, 8, ctypes.create_string_buffer(256))"))


def test_a_pair_of_sockets_for_oneself_is_allowed(judge: Judge) -> None:
    steps = "import asyncio\nasync def two():\n    await asyncio.sleep(0)\n    return 2\nresult = asyncio.run(two())"
    assert achieved(judge, steps) == "2"


# Processes


@pytest.mark.parametrize("call", ["os.kill({pid}, 0)", "os.killpg(os.getpgid({pid}), 0)", "os.kill({pid}, signal.SIGUSR1)"])
def test_the_parent_is_not_signalled(judge: Judge, call: str) -> None:
    assert refused(judge, f"import os, signal\nresult = {call.format(pid=os.getpid())}")


def test_killing_everything_kills_nothing_outside(judge: Judge) -> None:
    verdict = judge("import os, signal\nos.kill(-1, signal.SIGKILL)\ndef f(x): return 2", timeout=5.0)
    assert verdict.verdict in ("pass", "fail")
    assert judge("def f(x): return 2").passed


def test_the_first_process_cannot_be_killed(judge: Judge) -> None:
    code = "import os, signal\ndef f(x):\n    try: os.kill(1, signal.SIGKILL)\n    except OSError: pass\n    return 2"
    assert judge(code).passed


def test_the_parent_cannot_be_traced(judge: Judge) -> None:
    attach = 16
    assert refused(judge, from_libc(f"libc.ptrace({attach}, {os.getpid()}, 0, 0)"))


def test_the_parent_s_memory_cannot_be_read_by_call(judge: Judge) -> None:
    steps = f"""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    class Span(ctypes.Structure): _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
    here, there = Span(ctypes.addressof(ctypes.create_string_buffer(16)), 16), Span({id(SECRET)}, 16)
    result = libc.process_vm_readv({os.getpid()}, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
    """
    assert refused(judge, steps)


@pytest.mark.parametrize("name", ["environ", "mem", "maps", "cmdline", "fd/0"])
def test_proc_tells_nothing_of_the_parent(judge: Judge, name: str) -> None:
    assert refused(judge, f"result = open('/proc/{os.getpid()}/{name}', 'rb').read(64)")


def test_proc_lists_no_process_outside(judge: Judge) -> None:
    steps = "import os\nresult = max((int(name) for name in os.listdir('/proc') if name.isdigit()), default=0)"
    found = achieved(judge, steps)
    assert not found.isdigit() or int(found) < 50, "pids begin anew in a namespace, so outside ones would be larger"


def test_the_parent_s_priority_stays(judge: Judge) -> None:
    assert refused(judge, f"import os\nresult = os.setpriority(os.PRIO_PROCESS, {os.getpid()}, 19)")
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_the_parent_s_processors_stay(judge: Judge) -> None:
    before = os.sched_getaffinity(0)
    assert refused(judge, f"import os\nresult = os.sched_setaffinity({os.getpid()}, {{0}})")
    assert os.sched_getaffinity(0) == before


def test_the_parent_s_limits_stay(judge: Judge) -> None:
    assert refused(judge, f"import resource\nresult = resource.prlimit({os.getpid()}, resource.RLIMIT_NOFILE, (10, 10))")


def test_the_parent_s_descriptors_cannot_be_taken(judge: Judge) -> None:
    assert refused(judge, from_libc(f"libc.syscall(438, __import__('os').pidfd_open({os.getpid()}), 0, 0)"))


def test_no_signal_goes_out_through_a_descriptor(judge: Judge) -> None:
    assert refused(judge, f"import fcntl, os\nread, write = os.pipe()\nresult = fcntl.fcntl(read, fcntl.F_SETOWN, {os.getpid()})")


# Environment


def test_the_environment_holds_no_secret(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = achieved(judge, "import os\nresult = sorted(os.environ)")
    assert "HF_TOKEN" not in found and "HOME" not in found and "PATH" not in found


@pytest.mark.parametrize("process", ["self", "1", "2"])
def test_nor_does_the_environment_of_any_process_that_can_be_seen(judge: Judge, monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = achieved(judge, f"result = 'token' if b'HF_TOKEN' in open('/proc/{process}/environ', 'rb').read() else 'none'")
    assert found != "token"


def test_soka_s_own_files_are_not_there(judge: Judge) -> None:
    import soka_cli

    assert refused(judge, f"result = open({soka_cli.__file__!r}).read()")
    assert achieved(judge, "import soka_cli.errors\nresult = 'imported'") == "ModuleNotFoundError"


# Resources


def test_a_fork_bomb_burns_out(judge: Judge) -> None:
    verdict = judge("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout=0.7)
    assert verdict.verdict in ("timeout", "fail")


def test_threads_are_bounded(judge: Judge) -> None:
    steps = """
    import threading, time
    threads = [threading.Thread(target=time.sleep, args=(5,), daemon=True) for _ in range(500)]
    for thread in threads: thread.start()
    result = "started"
    """
    assert achieved(judge, steps) in ("RuntimeError", "MemoryError")


def test_memory_is_bounded(judge: Judge) -> None:
    assert achieved(judge, "result = len(bytearray(2 << 30))") == "MemoryError"


def test_memory_is_bounded_over_all_processes_of_a_program(judge: Judge) -> None:
    code = """
    import os, time
    for _ in range(20):
        if os.fork() == 0:
            block = bytearray(b"x") * (200 << 20)
            time.sleep(30)
    time.sleep(30)
    """
    verdict = judge(code, timeout=8.0)
    assert verdict.verdict == "fail" and "MiB together" in verdict.why, verdict


def test_descriptors_are_bounded(judge: Judge) -> None:
    assert refused(judge, "import os\nresult = [os.pipe() for _ in range(10000)]")


def test_limits_cannot_be_raised(judge: Judge) -> None:
    assert refused(judge, "import resource\nresult = resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))", "ValueError")


def test_deep_recursion_ends(judge: Judge) -> None:
    assert achieved(judge, "def down(n): return down(n + 1)\nresult = down(0)") == "RecursionError"


def test_recursion_without_a_limit_ends(judge: Judge) -> None:
    code = """
    import sys
    sys.setrecursionlimit(10**9)
    class Deep:
        def __repr__(self): return repr(self)
    def f(x): return repr(Deep())
    """
    assert judge(code).verdict == "fail"


def test_a_crash_of_the_interpreter_is_a_fail(judge: Judge) -> None:
    verdict = judge("import ctypes\ndef f(x): ctypes.string_at(0)")
    assert verdict.verdict == "fail" and "process ended" in verdict.why


def test_a_number_without_end_is_bounded(judge: Judge) -> None:
    assert judge("def f(x): return 10 ** (10 ** 10)", timeout=0.7).verdict in ("fail", "timeout")


def test_a_pattern_that_backtracks_forever_is_a_timeout(judge: Judge) -> None:
    assert judge("import re\ndef f(x): return re.match('(a+)+$', 'a' * 64 + 'b')", timeout=0.7).verdict == "timeout"


def test_a_busy_loop_is_a_timeout(judge: Judge) -> None:
    assert judge("while True: pass", timeout=0.7).verdict == "timeout"


def test_sleep_is_a_timeout(judge: Judge) -> None:
    start = time.monotonic()
    assert judge("import time\ntime.sleep(60)", timeout=0.7).verdict == "timeout"
    assert time.monotonic() - start < 20


def test_waiting_for_input_ends(judge: Judge) -> None:
    assert achieved(judge, "result = input()") == "EOFError"


def test_ignored_signals_do_not_stretch_the_time(judge: Judge) -> None:
    code = """
    import signal, time
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    time.sleep(60)
    """
    assert judge(code, timeout=0.7).verdict == "timeout"


def test_a_stopped_process_is_a_timeout(judge: Judge) -> None:
    assert judge("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", timeout=0.7).verdict == "timeout"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_of_output_is_cut_and_does_not_stop_the_program(judge: Judge, stream: str) -> None:
    verdict = judge(f"import sys\nfor _ in range(3000): print('x' * 10000, file=sys.{stream})\ndef f(x): return 2")
    assert verdict.passed and len(verdict.output) <= 4096


def test_a_line_of_a_hundred_megabytes_is_cut(judge: Judge) -> None:
    verdict = judge("import sys\nsys.stdout.buffer.write(b'x' * (100 << 20))\ndef f(x): return 2")
    assert verdict.passed and len(verdict.output) <= 4096


def test_an_endless_flood_is_a_timeout(judge: Judge) -> None:
    assert judge("while True: print('x' * 100000)", timeout=0.7).verdict == "timeout"


# What is left afterwards


MARK = f"soka{os.getpid()}x"  # not that of tests that run beside this one
MARKED = f"import ctypes\nctypes.CDLL(None).prctl(15, b'{MARK}', 0, 0, 0)\n"  # the name of this process and of all that it forks


def left_over() -> list[str]:
    """Processes of this machine that carry the mark, in their name or in their words."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and MARK in (process / "comm").read_text() + (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_process_that_is_left_would_be_found() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()", MARK], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 5
        while not (found := left_over()) and time.monotonic() < deadline:  # the kernel shows the words a moment after the start
            time.sleep(0.01)
        assert found == [str(process.pid)]
        process.communicate(b"\n")
    assert not left_over()


@pytest.mark.parametrize(
    "code",
    [
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\ndef f(x): return 2",
        "import os, time\nif os.fork() == 0:\n    while True: pass\ndef f(x): return 2",
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-S', '-c', 'while True: pass', '{MARK}'])\ndef f(x): return 2",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x): return 2",
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nif os.fork() == 0: time.sleep(60)\ndef f(x): return 2",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ],
    ids=["grandchild in a session of its own", "busy child", "other program", "thread", "child that ignores signals", "fork bomb"],
)
def test_nothing_of_a_program_runs_on_when_the_verdict_is_there(judge: Judge, code: str) -> None:
    verdict = judge(MARKED + code, timeout=0.7 if "while True:\n    try" in code else 10.0)
    assert not left_over()
    assert "Error" not in verdict.why or "landlock" in verdict.layer, verdict  # Landlock's layer refuses setsid itself


def test_no_file_is_left(judge: Judge) -> None:
    import tempfile

    folder = Path(tempfile.gettempdir())
    before = {path.name for path in folder.iterdir()}
    judge("import tempfile\ntry: open('/tmp/soka-left-behind', 'w').write('x')\nexcept OSError: pass\ndef f(x): return 2")
    assert "soka-left-behind" not in {path.name for path in folder.iterdir()} - before


def test_no_descriptor_of_ours_is_left_open(judge: Judge) -> None:
    judge("def f(x): return 2")
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(5):
        judge("def f(x): return 2")
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before


def test_one_program_s_files_are_not_there_for_the_next(judge: Judge) -> None:
    judge("open('/tmp/note', 'w').write('for the next one')")
    assert refused(judge, "result = open('/tmp/note').read()")
