"""Waiting for many answers at once."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_they_come(work: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> Iterator[list[tuple[Item, Result]]]:
    """Each item with `work(item)`, `at_once` under way, in the order in which they end; those that have ended by then come together.

    The threads die with the process, however long they would wait: an interrupt ends it at once. Leaving the iterator starts no more.

    Raises:
        Exception: the first that `work` raised.
    """
    ended: queue.SimpleQueue[tuple[Item, Result] | Exception] = queue.SimpleQueue()
    lock, places, left = threading.Lock(), iter(range(len(items))), threading.Event()

    def labour() -> None:
        while not left.is_set():
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                ended.put((items[place], work(items[place])))
            except Exception as error:  # handed to whoever waits
                ended.put(error)
                return

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=labour, daemon=True).start()
    count = 0
    try:
        while count < len(items):
            found = [ended.get()]
            while not ended.empty():
                found.append(ended.get())
            good = [one for one in found if not isinstance(one, Exception)]
            count += len(good)
            if good:
                yield good
            for one in found:
                if isinstance(one, Exception):
                    raise one
    finally:
        left.set()
