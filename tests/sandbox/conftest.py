"""One judge a layer for the whole session, so that a test costs one sandbox and not three."""

from collections.abc import Iterator

import pytest

from soka_cli.sandbox.isolation import NAMES, UNSAFE, find_isolation
from soka_cli.sandbox.worker import Worker
from tests.sandbox.attack import Judge, judge_with


@pytest.fixture(scope="session")
def workers() -> Iterator[dict[str, Worker]]:
    found: dict[str, Worker] = {}
    yield found
    for worker in found.values():
        worker.close()


@pytest.fixture(params=NAMES)
def worker(request: pytest.FixtureRequest, workers: dict[str, Worker]) -> Worker:
    """A worker on the layer named; skips with the machine's reason where that layer does not work."""
    name = request.param
    found = find_isolation(name)
    if found.layer is None:
        pytest.skip(f"{name}: {dict(found.refused)[name]}")
    if name not in workers:
        workers[name] = Worker(found.layer)
    return workers[name]


@pytest.fixture
def judge(worker: Worker) -> Judge:
    return judge_with(worker)


@pytest.fixture
def unsafe(workers: dict[str, Worker]) -> Judge:
    """No isolation at all: what shows that an attack is one."""
    if "none" not in workers:
        workers["none"] = Worker(UNSAFE)
    return judge_with(workers["none"])
