import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from soka_cli.run.interrupt import Interrupted, interrupts_wait, terminations_interrupt


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT: a shell starts background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_becomes_interrupted_and_passes_through_except_exception() -> None:
    with pytest.raises(Interrupted) as caught, terminations_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")
    assert caught.value.number == signal.SIGTERM


class AskedToEndWhenDropped:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs here, where Python drops what it raises


def test_a_termination_inside_a_finaliser_is_not_lost() -> None:
    with pytest.raises(Interrupted), terminations_interrupt():
        AskedToEndWhenDropped()
        time.sleep(5)


def test_sigint_stays_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, terminations_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(caught.value, Interrupted)


def test_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with terminations_interrupt(), interrupts_wait():
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) != before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_noted_signal_waits_for_the_end_of_the_block(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    steps = 0
    with pytest.raises(kind) as caught, interrupts_wait() as pending:
        while steps < 3:
            steps += 1
            os.kill(os.getpid(), number) if steps == 1 else None
        assert pending
    assert steps == 3
    assert type(caught.value) is kind


def test_a_second_signal_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")


def test_an_echo_of_the_first_signal_waits_too() -> None:
    """A batch system signals every process, and the launcher passes its own signal on to its workers."""
    with pytest.raises(Interrupted), interrupts_wait(echo=60) as pending:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        steps_went_on = bool(pending)
    assert steps_went_on


def test_a_signal_that_another_process_told_of_has_its_echo_here() -> None:
    with pytest.raises(Interrupted), interrupts_wait(echo=60) as pending:
        pending.learn(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        steps_went_on = bool(pending)
    assert steps_went_on


def test_after_the_time_of_the_echo_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((100.0, 106.0))
    monkeypatch.setattr("soka_cli.run.interrupt.time.monotonic", lambda: next(now))
    with pytest.raises(Interrupted), interrupts_wait(echo=5):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")


def test_without_a_signal_nothing_is_raised() -> None:
    with interrupts_wait() as pending:
        assert not pending


def test_in_another_thread_the_blocks_do_nothing() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with terminations_interrupt(), interrupts_wait():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
