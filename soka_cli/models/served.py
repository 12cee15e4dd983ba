"""A model behind an OpenAI-compatible server: asked over HTTP, patiently, its refusals in plain words.

The key comes from the environment alone and is in no message, record or log; an address that carries one is refused.
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests

from soka_cli.errors import ExitCode, SokaError

KEYS = ("SOKA_API_KEY", "OPENAI_API_KEY")  # the first that is set
PATIENCE = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each further try, give or take a quarter
LONGEST_WAIT = 120.0  # seconds of a Retry-After that are obeyed
TIMEOUT = (10.0, 900.0)  # seconds to connect, and for the next byte of an answer
CONNECTIONS = 64  # that are kept open; more requests at one time open their own
BUSY = (408, 425, 429)  # and all from 500 on: the same request may succeed later
PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)
NO_ROOM = re.compile(r"context (?:length|size|window)|maximum model length|exceed_context", re.IGNORECASE)
ROOM = re.compile(r"(?:context (?:length|size|window)|maximum model length)\D{0,24}(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class ServedModel:
    """A model that a server offers. `limit`: tokens that it has room for, prompt and answer together; None where it does not say."""

    name: str
    limit: int | None


@dataclass(frozen=True)
class ServedAnswer:
    """One completion as the server gave it.

    Attributes:
        text: what was written, with the stop string at its end where the server leaves it in.
        ids: the written tokens; None where the server does not tell them.
        finish: stop (by itself, or at a stop string) or length.
        stopped_by: the stop string or token that ended it; None for the model's own end, and where the server does not tell.
        tokens: how many were written, the end included.
    """

    text: str
    ids: list[int] | None
    finish: str
    stopped_by: str | int | None
    tokens: int


class NoRoomError(Exception):
    """The server has no room for a prompt and the answer asked for; `limit` in tokens, None where it does not say."""

    def __init__(self, limit: int | None) -> None:
        super().__init__(f"no room in a context of {limit or 'unknown'} tokens")
        self.limit = limit


class _PassingError(Exception):
    """A failure that may pass; `after` is the wait that the server asks for, in seconds."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Server:
    """An OpenAI-compatible server. Its methods may be called from several threads.

    Args:
        url: where it listens, with or without /v1 at the end.
        said: told once when the server falters.
        patience: seconds before each further try of a request that failed in a way that may pass.

    Raises:
        SokaError: exit 2 for a text that is no such address, or one that carries a password or a key.
    """

    def __init__(
        self,
        url: str,
        *,
        said: Callable[[str], None] = lambda text: None,
        patience: Sequence[float] = PATIENCE,
    ) -> None:
        self.url, self.host, local = _address(url)
        self.said = said
        self.patience = tuple(patience)
        self._key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
        self._session = requests.Session()
        self._session.trust_env = not local  # a proxy for the world is none for this machine
        self._session.auth = self._sign  # instead of what ~/.netrc may hold
        self._session.mount("http://", adapter := requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))
        self._session.mount("https://", adapter)
        self._faltering = threading.Event()

    # ---- questions

    def models(self) -> list[ServedModel]:
        """What the server offers.

        Raises:
            SokaError: exit 3, where nothing answers there, something else does, or the key is refused.
        """
        content = self._ask("GET", "/models", waits=())
        entries = content.get("data")
        if not isinstance(entries, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in entries):
            raise self._no_such_server("its answer to /models lists no models")
        return [ServedModel(one["id"], _count(one.get("max_model_len"))) for one in entries]

    def model(self, name: str | None) -> ServedModel:
        """The model of that name; without a name, the only one.

        Raises:
            SokaError: exit 3, listing what is served, where there is none, or no single one; and as `models`.
        """
        offered = self.models()
        found = [one for one in offered if name is None or one.name == name]
        if len(found) == 1:
            return found[0]
        names = ", ".join(one.name for one in offered) or "nothing"
        raise SokaError(
            f"The server serves no model {name}." if name is not None else f"The server serves {len(offered)} models, and none was named.",
            where=self.url,
            why=f"it serves {names}",
            hint=f"--served-model {offered[0].name}" if offered else "start it with a model, e.g. vllm serve runs/gsm8k/merge/model",
            exit_code=ExitCode.ENVIRONMENT,
        )

    def complete(self, model: str, prompt: Sequence[int], *, max_tokens: int, stops: Sequence[str] = (), **options: Any) -> ServedAnswer:
        """One completion of a prompt of token ids.

        Args:
            options: further fields of the request, such as temperature and seed.

        Raises:
            NoRoomError: prompt and answer have no room together.
            SokaError: exit 3, where the server refuses the request, or keeps failing.
        """
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "n": 1,
            "stream": False,
            "return_token_ids": True,
            "include_stop_str_in_output": True,
            **({"stop": list(stops)} if stops else {}),
            **options,
        }
        content = self._ask("POST", "/completions", body, waits=self.patience)
        answer = _read(content, len(prompt))
        if answer is None:
            raise self._no_such_server("its answer to /completions holds no completion")
        if answer.finish not in ("stop", "length"):
            raise SokaError(
                f"The server ended a completion with finish_reason {answer.finish}.",
                where=f"{self.url}/completions",
                hint="look into the server's log; what was answered is kept, and the same command goes on",
                exit_code=ExitCode.ENVIRONMENT,
            )
        return answer

    def token_ids(self, model: str, text: str) -> list[int] | None:
        """How the served model's tokenizer reads a text, without special tokens; None where the server does not tell (vLLM does)."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        try:
            found = self._once("POST", "/tokenize", body, base=self.url.removesuffix("/v1")).get("tokens")
        except (SokaError, _PassingError):
            return None
        return found if isinstance(found, list) and all(type(index) is int for index in found) else None

    # ---- transport

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, waits: Sequence[float]) -> dict[str, Any]:
        for wait in (*waits, None):
            try:
                content = self._once(method, path, body)
                self._faltering.clear()
                return content
            except _PassingError as trouble:
                if wait is None:
                    raise self._lost(str(trouble), tries=len(waits) + 1) from None
                if not self._faltering.is_set():
                    self._faltering.set()
                    self.said(f"{self.host}: {trouble}. Asking again.")
                time.sleep(max(wait * random.uniform(0.75, 1.25), min(trouble.after, LONGEST_WAIT)))
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None, base: str | None = None) -> dict[str, Any]:
        try:
            reply = self._session.request(method, (base or self.url) + path, json=body, timeout=TIMEOUT, allow_redirects=False)
        except requests.exceptions.SSLError as error:
            raise self._lost(_reason(error), tries=1) from None
        except PASSING as error:
            raise _PassingError(_reason(error)) from None
        if reply.status_code in BUSY or reply.status_code >= 500:
            raise _PassingError(f"it answers {self._words(reply)}", _retry_after(reply.headers.get("Retry-After")))
        if reply.status_code >= 300:
            raise self._refusal(reply, path)
        try:
            content = reply.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            if method == "GET":
                raise self._no_such_server("its answer is no JSON object")
            raise _PassingError("its answer is no JSON object")
        return content

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    # ---- refusals

    def _words(self, reply: requests.Response) -> str:
        """Status and the server's own message, on one line, without the key."""
        try:
            message = _message(reply.json())
        except ValueError:
            message = ""
        message = message.replace(self._key, "***") if self._key else message
        return f"{reply.status_code} {reply.reason or ''}".rstrip() + (f": {' '.join(message.split())[:400]}" if message else "")

    def _refusal(self, reply: requests.Response, path: str) -> Exception:
        words, asked = self._words(reply), path == "/completions"
        if reply.status_code in (401, 403):
            sent = "the key in the environment" if self._key else "no key was sent"
            return SokaError(
                "The server refuses the key." if self._key else "The server wants a key.",
                where=self.url,
                why=f"{words} ({sent})",
                hint=f"set the environment variable {KEYS[0]} (or {KEYS[1]}) to a key of this server",
                exit_code=ExitCode.ENVIRONMENT,
            )
        if not asked or reply.status_code < 400:
            return self._no_such_server(f"it answers {words}")
        if NO_ROOM.search(words):
            found = ROOM.search(words)
            return NoRoomError(int(found[1]) if found else None)
        return SokaError(
            "The server refuses a request.",
            where=f"{self.url}{path}",
            why=words,
            hint="start the server anew with options that allow it, or change the recipe's eval entry",
            exit_code=ExitCode.ENVIRONMENT,
        )

    def _no_such_server(self, why: str) -> SokaError:
        return SokaError(
            "There is no OpenAI-compatible server at this address.",
            where=self.url,
            why=why,
            hint="name the address that the server printed at its start, e.g. --url http://localhost:8000/v1",
            exit_code=ExitCode.ENVIRONMENT,
        )

    def _lost(self, why: str, *, tries: int) -> SokaError:
        return SokaError(
            "The server cannot be reached." if tries == 1 else f"The server failed {tries} times in a row.",
            where=self.url,
            why=why,
            hint="look whether it runs and has its model loaded; the same command then goes on with what is missing",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _address(url: str) -> tuple[str, str, bool]:
    """The base address ending in /v1, host and port, and whether that is this machine. Exit 2 for anything but http(s)://host[:port][/path]."""

    def refused(what: str, hint: str) -> SokaError:
        return SokaError(what, where="--url", hint=hint, exit_code=ExitCode.USAGE)

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refused("The address is none of a server.", "write it whole: --url http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise refused(
            "The address carries more than host and path; it would be recorded with the command.",
            f"put a key into the environment variable {KEYS[0]}, and give the address alone: --url http://localhost:8000/v1",
        )
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host = name if port is None else f"{name}:{port}"
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{host}{path}" + ("" if path.endswith("/v1") else "/v1")
    return base, host, _is_local(parts.hostname)


def _is_local(name: str) -> bool:
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _read(content: Mapping[str, Any], prompt_tokens: int) -> ServedAnswer | None:
    """The one choice of a completion; None where it is none."""
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        return None
    ids, by, usage = choice.get("token_ids"), choice.get("stop_reason"), content.get("usage")
    known = ids if isinstance(ids, list) and all(type(index) is int for index in ids) else None
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return ServedAnswer(
        text=choice["text"],
        ids=known,
        finish=str(choice.get("finish_reason")),
        stopped_by=by if isinstance(by, str | int) else None,
        tokens=len(known) if known is not None else _count(counted) or 0,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _message(content: Any) -> str:
    """A server's error in its own words: OpenAI's `error.message`, or the plainer forms of others."""
    if not isinstance(content, dict):
        return ""
    inner = content.get("error", content)
    found = inner.get("message") or inner.get("detail") or "" if isinstance(inner, dict) else inner
    return str(found)


def _retry_after(text: str | None) -> float:
    """Seconds that a Retry-After asks for, as a number or a date."""
    if text is None:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _reason(error: Exception) -> str:
    """The innermost cause of a failed request: requests wraps it in the address and its own objects."""
    while (inner := error.__cause__ or error.__context__) is not None and isinstance(inner, Exception):
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
