"""One matrix is read while the one before is decomposed, and no more."""

import threading
from collections.abc import Iterator

import pytest

from soka_cli.stages.matrices import Matrix, read_ahead

WAIT = 10.0  # seconds after which a thread that should have moved counts as stuck


def test_the_next_item_is_made_while_the_caller_works_on_this_one() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    ahead = read_ahead(items())
    assert next(ahead) == 1
    assert second.wait(WAIT), "the second item was not begun before it was asked for"
    assert list(ahead) == [2]


def test_no_more_than_one_item_is_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    for number in read_ahead(items()):
        assert len(made) <= number + 2


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second is damaged")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="the second is damaged"):
        next(ahead)


def test_leaving_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    for _ in read_ahead(iter(range(100))):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("read-ahead"):
            thread.join(WAIT)
    assert threading.active_count() <= before


def test_a_matrix_that_was_taken_is_kept_nowhere() -> None:
    import weakref

    import torch

    values = torch.zeros(3, 4)
    alive, matrix = weakref.ref(values), Matrix(values, digest="")
    del values
    assert alive() is not None
    assert matrix.take().shape == (3, 4)
    assert alive() is None
