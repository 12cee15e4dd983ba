"""Places, shares and the one word between processes; the launcher itself is tested through the command line."""

import itertools
import os
import random
import socket
import subprocess
import sys
import threading

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages import launch
from soka_cli.stages.launch import Worker, in_processes, share_out

PLACE = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
    "SOKA_LAUNCHER",
    "ACCELERATE_MIXED_PRECISION",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pair(alone: None, monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, Worker]:
    """Two workers of a launcher that keeps no store, as a batch system is, both in this process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(port))
    first = Worker(0, 0, 2)
    first._store()  # torch waits for a store without letting another thread of the same process make it
    return first, Worker(1, 1, 2)


def test_without_a_launcher_a_process_is_alone(alone: None) -> None:
    assert Worker.here() == Worker(rank=0, local_rank=0, count=1)


def test_a_place_is_what_the_launcher_wrote(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert Worker.here() == Worker(rank=5, local_rank=1, count=8)


def test_every_piece_goes_to_one_process() -> None:
    choose = random.Random(0)
    for count in (1, 2, 3, 7):
        costs = [choose.randint(1, 50) for _ in range(20)]
        assert sorted(itertools.chain(*share_out(costs, count))) == list(range(20))


def test_shares_are_within_a_third_of_the_best_division() -> None:
    """Graham's bound for the costliest first: 4/3 - 1/(3 count)."""
    choose = random.Random(1)
    for _ in range(30):
        costs = [choose.randint(1, 50) for _ in range(8)]
        best = min(max(sum(costs) - sum(side), sum(side)) for size in range(9) for side in itertools.combinations(costs, size))
        most = max(sum(costs[index] for index in share) for share in share_out(costs, 2))
        assert most <= (4 / 3 - 1 / 6) * best


def test_a_share_begins_with_its_costliest_piece_and_keeps_the_order_of_equal_ones() -> None:
    assert share_out([1, 9, 1, 9, 1, 9], 1) == [[1, 3, 5, 0, 2, 4]]
    assert share_out([1, 9, 1, 9, 1, 9], 2) == [[1, 5], [3, 0, 2, 4]]


def test_the_others_begin_when_the_first_says_so(pair: tuple[Worker, Worker]) -> None:
    first, other = pair
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(other.may_begin("decompose")))
    with first.leads("decompose") as go:
        waiting.start()
        waiting.join(0.3)
        assert answers == []
        go()
    waiting.join(20)
    assert answers == [True]


def test_the_others_end_when_the_first_fails_before_its_word(pair: tuple[Worker, Worker]) -> None:
    first, other = pair
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(other.may_begin("decompose")))
    waiting.start()
    with pytest.raises(ValueError, match="stale"), first.leads("decompose"):
        raise ValueError("stale")
    waiting.join(20)
    assert answers == [False]


def test_without_a_word_the_others_give_up_and_say_so(pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = pair
    monkeypatch.setattr(launch, "PATIENCE", launch.timedelta(seconds=0.2))
    with pytest.raises(SokaError, match="no sign") as caught:
        other.may_begin("decompose")
    assert caught.value.exit_code is ExitCode.ENVIRONMENT


def test_one_of_the_processes_shows_an_error(pair: tuple[Worker, Worker]) -> None:
    assert [worker.speaks_first() for worker in (*pair, *pair)] == [True, False, False, False]


def test_a_process_alone_waits_for_nobody(alone: None) -> None:
    worker = Worker()
    with worker.leads("decompose") as go:
        go()
    assert worker.speaks_first() and worker.speaks_first()


@pytest.mark.parametrize(("asked", "started"), [(2, 4), (2, 1)])
def test_another_number_of_processes_than_asked_for_is_refused(
    alone: None, monkeypatch: pytest.MonkeyPatch, asked: int, started: int
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(started)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SokaError, match=f"{asked} was asked for, and {started} were started") as caught:
        in_processes("soka decompose", asked)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("asked", [1, 2])
def test_under_a_launcher_nothing_is_launched(alone: None, monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not in_processes("soka decompose", asked)


def accelerates_words(*arguments: str) -> dict[str, str]:
    """What `accelerate launch` hands to the one process that it starts without a place, worked out by its own code."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_simple_launcher_cmd_env

    parsed = _validate_launch_command(launch_command_parser().parse_args([*arguments, "-m", "soka_cli", "train"]))[0]
    return {name: value for name, value in prepare_simple_launcher_cmd_env(parsed)[1].items() if name not in os.environ}


def test_one_process_of_several_that_accelerate_did_not_start_is_refused(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in accelerates_words("--cpu", "--num_processes", "2").items():
        monkeypatch.setenv(name, value)
    for asked in (1, 2):
        with pytest.raises(SokaError, match="started this one alone") as caught:
            in_processes("soka train", asked)
        assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("own", [(), ("--cpu",)])
def test_one_process_by_accelerate_goes_its_way(own: tuple[str, ...], alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    words = accelerates_words(*own, "--num_processes", "1")
    assert "ACCELERATE_MIXED_PRECISION" in words
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    assert not in_processes("soka train", 1)


@pytest.mark.parametrize(("own", "seconds"), [(None, 3600), ("7", 7)])
def test_a_terminated_launcher_leaves_its_workers_time_for_a_step_and_a_checkpoint(
    own: str | None, seconds: int, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch waits by before it kills them; an hour, where the user does not say otherwise."""
    from torch.distributed.launcher import api

    configs: list[api.LaunchConfig] = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, entry: configs.append(config) or (lambda *words: None))
    if own is not None:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", own)
    launch.launch("soka train -r gsm8k.yaml", 2)
    assert [config.shutdown_timeout for config in configs] == [seconds]
    assert os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") == own


def test_several_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Worker(rank, rank, 4).device("cuda") for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Worker(1, 1, 4).device("cpu") == "cpu"
    assert Worker(1, 1, 4).device("cuda:1") == "cuda:1"
    assert Worker().device("cuda") == "cuda"


def test_a_worker_whose_launcher_is_gone_already_ends() -> None:
    program = "from soka_cli.stages.launch import end_with_launcher; end_with_launcher()"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "x", "SOKA_LAUNCHER": "999999999"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "stopped by SIGTERM" in done.stderr and done.returncode != 0
