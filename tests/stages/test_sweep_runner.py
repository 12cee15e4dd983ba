"""Jobs in processes of their own: quick verbs that need no torch."""

import os
from pathlib import Path

import pytest

from soka_cli.stages import sweep_runner
from soka_cli.stages.sweep_runner import Ended, Job, devices_for, run_jobs

GOOD = ("recipes", "validate", "demo")
BAD = ("plan", "--recipe", "nowhere.yaml")


def job(folder: Path, name: str, *commands: tuple[str, ...]) -> Job:
    return Job(name, commands, folder / f"logs/{name}.log", folder / f"logs/{name}.jsonl")


def run(jobs: list[Job], count: int = 1) -> tuple[dict[str, Ended], list[str]]:
    begun: list[str] = []
    ends = {ended.job.name: ended for ended in run_jobs(jobs, count, begun=lambda one: begun.append(one.name))}
    return ends, begun


def test_a_job_s_commands_run_one_after_the_other_until_one_fails(tmp_path: Path) -> None:
    ends, begun = run([job(tmp_path, "good", GOOD, GOOD), job(tmp_path, "bad", BAD, GOOD)])
    assert begun == ["good", "bad"]
    assert (ends["good"].exit_code, ends["good"].error) == (0, None)
    assert ends["bad"].exit_code == 2 and "nowhere.yaml" in str(ends["bad"].error)
    assert (tmp_path / "logs/good.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "logs/bad.jsonl").read_text().count("\n") == 1


def test_as_many_run_at_a_time_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    spawn = sweep_runner.spawn

    def counted(*arguments: object) -> object:
        process = spawn(*arguments)  # type: ignore[arg-type]
        started.append(process)
        alive.append(sum(one.poll() is None for one in started))
        return process

    started: list[object] = []
    monkeypatch.setattr(sweep_runner, "spawn", counted)
    ends, _ = run([job(tmp_path, str(index), GOOD) for index in range(5)], count=2)
    assert len(ends) == 5 and max(alive) == 2


def test_what_ends_the_sweep_ends_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_runner.sys, "executable", "/bin/sh")
    monkeypatch.setattr(sweep_runner, "spawn", _sleeping(spawned := []))
    ends = run_jobs([job(tmp_path, "long", GOOD)], 1, begun=lambda _: None)
    monkeypatch.setattr(sweep_runner.time, "sleep", _interrupting())
    with pytest.raises(KeyboardInterrupt):
        next(ends)
    assert spawned[0].poll() is not None


def _sleeping(spawned: list) -> object:  # type: ignore[type-arg]
    import subprocess

    def spawn(*_: object) -> object:
        spawned.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        return spawned[-1]

    return spawn


def _interrupting() -> object:
    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    return sleep


def test_a_killed_command_is_an_error_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setattr(sweep_runner, "spawn", lambda *_: subprocess.Popen(["sh", "-c", "kill -9 $$"]))
    ends, _ = run([job(tmp_path, "killed", GOOD)])
    assert ends["killed"].exit_code == 137 and "killed" in str(ends["killed"].error)


def test_several_gpus_are_taken_in_turn_and_a_device_that_was_named_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_runner, "gpus", lambda: 2)
    assert devices_for("auto", 4) == ["cuda:0", "cuda:1"]
    assert devices_for("auto", 1) == [] and devices_for("cuda:1", 4) == ["cuda:1"]
    monkeypatch.setattr(sweep_runner, "gpus", lambda: 0)
    assert devices_for("auto", 4) == []


def test_the_processes_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    popen = sweep_runner.subprocess.Popen

    def watched(words: list[str], **options: object) -> object:
        seen.append(options["env"]["OMP_NUM_THREADS"])  # type: ignore[index]
        return popen(words, **options)  # type: ignore[call-overload]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sweep_runner, "processors", lambda: 8)
    monkeypatch.setattr(sweep_runner.subprocess, "Popen", watched)
    run([job(tmp_path, "one", GOOD), job(tmp_path, "two", GOOD)], count=2)
    assert seen == ["4", "4"] and os.environ.get("OMP_NUM_THREADS") is None
