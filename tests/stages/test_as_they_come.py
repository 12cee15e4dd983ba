"""Waiting for many answers at once."""

import threading

import pytest

from soka_cli.stages.as_they_come import as_they_come


def test_every_item_comes_once_with_its_own_result() -> None:
    found = [pair for some in as_they_come(lambda item: item * item, range(100), 7) for pair in some]
    assert sorted(found) == [(item, item * item) for item in range(100)]


def test_a_slow_item_does_not_keep_the_others_waiting() -> None:
    others = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert others.wait(30)
        return item

    order = []
    for some in as_they_come(work, range(6), 2):
        order += [item for item, _ in some]
        if len(order) == 5:
            others.set()
    assert order[-1] == 0


def test_a_failure_comes_out_after_what_ended_before_it() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise OSError("no more")
        return item

    found = []
    with pytest.raises(OSError, match="no more"):
        for some in as_they_come(work, range(10), 1):
            found += some
    assert found == [(0, 0), (1, 1), (2, 2)]


def test_leaving_starts_no_more_and_waits_for_nothing() -> None:
    started, never = [], threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item:
            never.wait(60)
        return item

    waiting = as_they_come(work, range(10), 2)
    next(waiting)
    waiting.close()  # type: ignore[attr-defined]
    assert len(started) <= 4


def test_nothing_to_do_is_done_at_once() -> None:
    assert list(as_they_come(abs, [], 4)) == []
