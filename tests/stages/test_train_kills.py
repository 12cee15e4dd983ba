"""Training killed with -9 at random moments, with dropout and processes that make batches ahead: the bytes of an undisturbed run."""

import multiprocessing
import random
from pathlib import Path

import pytest

from soka_cli.run.layout import RunLayout
from tests.cli.test_train_processes import curve, weights
from tests.soak.train_kills import PRELOADED, killed_alone, recipe

KILLS = 5
FORKSERVER = multiprocessing.get_context("forkserver")


@pytest.mark.slow
def test_killed_five_times_at_random_moments_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    FORKSERVER.set_forkserver_preload(list(PRELOADED))
    recipe(tmp_path)
    undisturbed = RunLayout(tmp_path / "undisturbed")
    assert not killed_alone(FORKSERVER, tmp_path, undisturbed)
    choose, kills, ends = random.Random(6), 0, 0
    while kills < KILLS:
        run, before = RunLayout(tmp_path / f"run-{ends}"), kills
        while killed_alone(FORKSERVER, tmp_path, run, choose if kills < KILLS else None):
            kills += 1
        ends += 1
        assert weights(run) == weights(undisturbed), f"other weights after {kills - before} kills"
        assert curve(run) == curve(undisturbed), f"another curve after {kills - before} kills"
