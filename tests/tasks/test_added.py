"""A task of one's own can be asked like those that are there, and takes no other's place."""

from typing import Any

import pytest

from soka_cli.errors import SokaError
from soka_cli.recipe import schema
from soka_cli.recipe.schema import EvalSection, SourceSection
from soka_cli.tasks import added, base, protocol
from soka_cli.tasks.added import add_task
from soka_cli.tasks.base import task_named
from soka_cli.tasks.gsm8k import Gsm8k
from soka_cli.tasks.mbpp import Mbpp
from soka_cli.tasks.protocol import AskingProtocol, protocol_named


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh copies, so that nothing stays behind."""
    lists = {name: list(getattr(schema, name)) for name in ("TRAINING_TASKS", "PROGRAM_TASKS")}
    tables: dict[str, Any] = {"TASK_PROTOCOLS": dict(schema.TASK_PROTOCOLS)} | lists
    for name, table in tables.items():
        monkeypatch.setattr(schema, name, table)
        monkeypatch.setattr(added, name, table)
    for name in ("TASK_PROTOCOLS", "PROGRAM_TASKS"):
        monkeypatch.setattr(protocol, name, tables[name])
    for module, name in ((base, "ADDED"), (protocol, "ADDED_PROTOCOLS")):
        table: dict[Any, Any] = {}
        monkeypatch.setattr(module, name, table)
        monkeypatch.setattr(added, name, table)


def asked(task: str, name: str = "plain") -> AskingProtocol:
    return AskingProtocol(name=name, task=task, template="plain", stops=(), max_new_tokens=8, decoding="greedy", reference="Ours.")


def test_it_is_found_by_name_with_its_protocol() -> None:
    task, way = Gsm8k(name="sums"), asked("sums", "own")
    add_task(task, way)
    assert task_named("sums") is task and protocol_named("own", "sums") is way
    assert EvalSection(task="sums", protocol="own", path="x.jsonl").folder == "sums-own"
    assert SourceSection(task="sums", path="x.jsonl").task == "sums"


def test_one_of_programs_has_pass_at_k() -> None:
    add_task(Mbpp(name="programs"), asked("programs"))
    assert EvalSection(task="programs", path="x.jsonl", samples=2, temperature=0.5, pass_at=[2]).pass_at == [2]
    with pytest.raises(ValueError, match="has no pass@k"):
        EvalSection(task="gsm8k", path="x.jsonl", samples=2, temperature=0.5, pass_at=[2])


def test_others_keep_theirs() -> None:
    add_task(Gsm8k(name="sums"), asked("sums", "own"))
    assert isinstance(task_named("gsm8k"), Gsm8k) and protocol_named("plain", "gsm8k").stops
    with pytest.raises(SokaError):
        protocol_named("plain", "sums")
    with pytest.raises(ValueError):
        EvalSection(task="gsm8k", protocol="own", path="x.jsonl")


@pytest.mark.parametrize(
    ("task", "protocols", "said"),
    [
        ("gsm8k", [asked("gsm8k")], "there is a task gsm8k already"),
        ("sums", [], "needs a protocol"),
        ("sums", [asked("gsm8k")], "protocol plain is not of task sums"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(task: str, protocols: list[AskingProtocol], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        add_task(Gsm8k(name=task), *protocols)
    assert "sums" not in schema.TASK_PROTOCOLS and not base.ADDED
