import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.lock import RunLock
from tests.run.conftest import in_child

HOLDER = """
import sys
from pathlib import Path
from soka_cli.run.lock import RunLock
with RunLock(Path(sys.argv[1]), "soka train -r mine.yaml"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def takes_lock(path: Path) -> None:
    with RunLock(path):
        pass


def test_a_second_process_is_refused_with_the_holder_named_and_a_dead_holders_lock_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    holder = start_holder(path)
    try:
        with pytest.raises(SokaError) as caught:
            takes_lock(path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert caught.value.exit_code == ExitCode.RUN
    assert f"process {holder.pid} " in caught.value.what and "soka train -r mine.yaml" in caught.value.what
    takes_lock(path)


def test_the_lock_is_free_again_after_the_block(tmp_path: Path) -> None:
    takes_lock(tmp_path / ".lock")
    assert in_child(lambda: takes_lock(tmp_path / ".lock")) == 0


def test_one_process_may_take_it_again_and_loses_it_only_at_the_outermost_end(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with RunLock(path):
        with RunLock(path):
            pass
        assert in_child(lambda: takes_lock(path)) == 1
    assert in_child(lambda: takes_lock(path)) == 0


def test_the_lock_is_the_same_by_whatever_name_the_folder_goes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "alias").symlink_to("run")
    with RunLock(tmp_path / "run" / ".lock"), RunLock(tmp_path / "alias" / ".lock"):
        assert in_child(lambda: takes_lock(tmp_path / "alias" / ".lock")) == 1


def test_a_forked_worker_does_not_have_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"

    def worker() -> None:
        with pytest.raises(SokaError, match="in use by process"):
            takes_lock(path)

    with RunLock(path):
        assert in_child(worker) == 0


def test_a_worker_that_outlives_the_holder_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    reading, writing = os.pipe()
    stop_reading, stop_writing = os.pipe()

    def holder() -> None:
        RunLock(path).__enter__()
        if os.fork() == 0:
            os.close(stop_writing)
            os.read(stop_reading, 1)  # the worker lives until the test ends it
            os._exit(0)
        os.write(writing, b"x")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(holder) == -signal.SIGKILL
    os.read(reading, 1)
    takes_lock(path)
    os.close(stop_writing)


def test_a_worker_that_ends_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with RunLock(path):
        worker = multiprocessing.get_context("fork").Process(target=os.getpid)
        worker.start()
        worker.join()
        assert in_child(lambda: takes_lock(path)) == 1


def test_a_lock_file_that_cannot_be_is_exit_5(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SokaError) as caught:
        takes_lock(tmp_path / "file" / ".lock")
    assert caught.value.exit_code == ExitCode.RUN and caught.value.hint


def test_a_deleted_lock_file_leaves_no_second_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    takes_lock(path)
    path.unlink()
    with RunLock(path):
        assert in_child(lambda: takes_lock(path)) == 1
