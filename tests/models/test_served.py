"""The client of a server: what is sent, what is tried again, what is refused in which words."""

import socket
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import served
from soka_cli.models.served import NoRoomError, ServedModel, Server
from tests.stub_server import Fault, Stub, answers, breaks_off, hangs_up

KEY = "sk-a-secret-of-the-user"
QUICK = (0.001, 0.001, 0.001)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in served.KEYS:
        monkeypatch.delenv(name, raising=False)


def ask(stub: Stub, **options: Any) -> served.ServedAnswer:
    return Server(stub.url, patience=QUICK).complete("tiny", [1, 2], max_tokens=3, **options)


def refused(call: Any, code: ExitCode = ExitCode.ENVIRONMENT) -> str:
    with pytest.raises(SokaError) as caught:
        call()
    assert caught.value.exit_code == code
    return str(caught.value)


def test_a_request_says_all_that_decides_the_answer() -> None:
    with Stub() as stub:
        ask(stub, stops=["Q:"], temperature=0.0, seed=7)
    (body,) = stub.asked
    wanted = {"model": "tiny", "prompt": [1, 2], "max_tokens": 3, "stop": ["Q:"], "temperature": 0.0, "seed": 7, "n": 1}
    assert body.items() >= wanted.items()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_an_address_is_understood_with_and_without_its_ending(ending: str) -> None:
    with Stub(limit=64) as stub:
        assert Server(stub.url + ending).models() == [ServedModel("tiny", 64)]


@pytest.mark.parametrize(
    "fault",
    [
        answers(500, {"error": {"message": "engine"}}),
        answers(503, "loading"),
        answers(429, {}),
        hangs_up,
        breaks_off,
        answers(200, "<html>"),
    ],
    ids=["500", "503", "429", "hangs up", "breaks off", "garbage"],
)
def test_a_failure_that_passes_is_tried_again(fault: Fault) -> None:
    with Stub(faults=[fault, fault]) as stub:
        assert ask(stub).text == "aaa"
    assert len(stub.asked) == 3


def test_a_wait_that_the_server_asks_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(served.time, "sleep", waits.append)
    with Stub(faults=[answers(429, {}, Retry_After="7"), answers(503, {}, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")]) as stub:
        ask(stub)
    assert [wait for wait in waits if wait] == [7.0, pytest.approx(0.001, rel=0.3)]


def test_waits_grow_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(served.time, "sleep", waits.append)
    with Stub(faults=[answers(500, {}, Retry_After="999999")] * 20) as stub:
        said = refused(lambda: Server(stub.url).complete("tiny", [1], max_tokens=1))
    assert max(waits) == served.LONGEST_WAIT
    assert f"{len(served.PATIENCE) + 1} times" in said
    assert list(served.PATIENCE) == sorted(served.PATIENCE)


def test_a_server_that_keeps_failing_is_given_up_with_its_own_words() -> None:
    with Stub(faults=[answers(500, {"error": {"message": "engine is dead"}})] * 9) as stub:
        said = refused(lambda: ask(stub))
    assert "engine is dead" in said and "goes on" in said
    assert len(stub.asked) == len(QUICK) + 1


def test_a_faltering_server_is_told_once() -> None:
    told: list[str] = []
    with Stub(faults=[answers(500, {}), hangs_up]) as stub:
        Server(stub.url, patience=QUICK, said=told.append).complete("tiny", [1], max_tokens=1)
    assert len(told) == 1 and "500" in told[0]


def test_nothing_at_the_address_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
    said = refused(Server(f"http://127.0.0.1:{free}").models)
    assert "cannot be reached" in said and "refused" in said and str(free) in said


@pytest.mark.parametrize(
    "front",
    [
        answers(200, "<html>"),
        answers(404, {"detail": "Not Found"}),
        answers(200, {"hello": 1}),
        answers(302, "", Location="http://x.invalid"),
    ],
    ids=["a page", "404", "other JSON", "elsewhere"],
)
def test_another_kind_of_server_is_told_from_a_model_server(front: Fault) -> None:
    with Stub(front=front) as stub:
        assert "no OpenAI-compatible server" in refused(Server(stub.url).models)


def test_a_model_that_is_not_served_is_refused_with_what_is() -> None:
    with Stub(names=("one", "two")) as stub:
        said = refused(lambda: Server(stub.url).model("three"))
        assert "three" in said and "one, two" in said


def test_without_a_name_the_only_model_is_meant_and_of_several_none() -> None:
    with Stub() as stub:
        assert Server(stub.url).model(None).name == "tiny"
        stub.names = ("one", "two")
        assert "one, two" in refused(lambda: Server(stub.url).model(None))


def test_a_refused_request_is_not_repeated_and_has_the_servers_message() -> None:
    with Stub(faults=[answers(400, {"object": "error", "message": "logprobs are off"})]) as stub:
        assert "logprobs are off" in refused(lambda: ask(stub))
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("This model's maximum context length is 40 tokens. However, you requested 50 tokens", 40),
        ("The decoder prompt (length 50) is longer than the maximum model length of 40.", 40),
        ("the request exceeds the available context size, try increasing it", None),
    ],
)
def test_a_prompt_that_is_too_long_is_told_from_other_refusals(message: str, limit: int | None) -> None:
    with Stub(faults=[answers(400, {"error": {"message": message}})]) as stub, pytest.raises(NoRoomError) as caught:
        ask(stub)
    assert caught.value.limit == limit


def test_an_answer_that_was_cut_off_by_the_server_is_no_answer() -> None:
    with Stub(lambda body: {"text": "half", "finish_reason": "abort", "token_ids": None}) as stub:
        assert "abort" in refused(lambda: ask(stub))


# ---- keys


@pytest.mark.parametrize("name", served.KEYS)
def test_a_key_is_sent_that_the_environment_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KEY)
    with Stub() as stub:
        Server(stub.url).models()
    assert stub.seen[0][1]["Authorization"] == f"Bearer {KEY}"


def test_no_key_is_taken_from_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {KEY}\n", encoding="utf8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Stub() as stub:
        Server(stub.url).models()
    assert "Authorization" not in stub.seen[0][1]


def test_a_key_that_the_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOKA_API_KEY", KEY)
    with Stub(front=answers(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})) as stub:
        said = refused(Server(stub.url).models)
    assert "Incorrect API key" in said and KEY not in said


def test_a_server_that_wants_a_key_names_the_variable_to_set() -> None:
    with Stub(front=answers(401, {"error": "Unauthorized"})) as stub:
        assert "SOKA_API_KEY" in refused(Server(stub.url).models)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@127.0.0.1:1/v1", f"http://127.0.0.1:1/v1?api_key={KEY}", f"http://127.0.0.1:1/v1#{KEY}"])
def test_an_address_that_carries_a_key_is_refused_without_showing_it(url: str) -> None:
    assert KEY not in refused(lambda: Server(url), ExitCode.USAGE)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "http://localhost:port/v1", "http://[::1", ""])
def test_a_text_that_is_no_address_is_refused(url: str) -> None:
    refused(lambda: Server(url), ExitCode.USAGE)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Stub() as stub:
        assert Server(stub.url).model("tiny").name == "tiny"
