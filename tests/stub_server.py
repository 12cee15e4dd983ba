"""An OpenAI-compatible server of our own, with a tiny model behind it and the faults that a test asks for."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Fault = Callable[["Handler"], None]


def echo(body: Body) -> Body:
    """A completion that needs no model: as many bytes `a` as were asked for."""
    count = body["max_tokens"]
    return {"text": "a" * count, "finish_reason": "length", "token_ids": None}


def of_model(model: Any, tokenizer: Any, *, tells_ids: bool = True) -> Callable[[Body], Body]:
    """What vLLM would answer: greedy, one token after the other by whole forward passes, ended by EOS, a stop string or max_tokens."""
    import torch

    lock = threading.Lock()

    def complete(body: Body) -> Body:
        written: list[int] = []
        text, finish, by = "", "length", None
        while len(written) < body["max_tokens"] and finish == "length":
            with lock, torch.inference_mode():
                written.append(int(model(torch.tensor([body["prompt"] + written])).logits[0, -1].argmax()))
            if written[-1] == tokenizer.eos_token_id:
                finish = "stop"
                continue
            text = tokenizer.decode(written, skip_special_tokens=True)
            if found := [stop for stop in body.get("stop", ()) if stop in text]:
                finish, by = "stop", found[0]
        told = {"token_ids": written} if tells_ids else {}
        return {"text": text, "finish_reason": finish, "stop_reason": by, "tokens": len(written)} | told

    return complete


def answers(status: int, content: Any = None, **headers: str) -> Fault:
    """A fault: this status and JSON (or text) in place of a completion; header names with _ for -."""

    def fault(handler: "Handler") -> None:
        handler.send(status, content, {name.replace("_", "-"): value for name, value in headers.items()})

    return fault


def hangs_up(handler: "Handler") -> None:
    """A fault: the connection ends without an answer."""
    handler.close_connection = True


def breaks_off(handler: "Handler") -> None:
    """A fault: the connection ends in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


class Handler(BaseHTTPRequestHandler):
    """One request; `stub` is the server's description."""

    stub: "Stub"

    def do_GET(self) -> None:
        self.stub.seen.append((self.path, dict(self.headers), None))
        if self.stub.front is not None:
            return self.stub.front(self)
        if self.path != "/v1/models":
            return self.send(404, {"detail": "Not Found"})
        self.send(200, {"object": "list", "data": [{"id": name, "max_model_len": self.stub.limit} for name in self.stub.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stub.seen.append((self.path, dict(self.headers), body))
        if self.path == "/tokenize" and self.stub.tokenizer is not None:
            ids = self.stub.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
            return self.send(200, {"tokens": ids})
        if self.path != "/v1/completions":
            return self.send(404, {"detail": "Not Found"})
        with self.stub.working():
            fault = self.stub.next_fault()
            if fault is not None:
                return fault(self)
            choice = self.stub.complete(body)
            usage = {"completion_tokens": choice.pop("tokens", len(choice["text"]))}
            self.send(200, {"choices": [{"index": 0} | choice], "usage": usage})

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: Any) -> None:
        """Nothing is printed."""


class Stub:
    """A running server.

    Attributes:
        names: of the models that it serves; `limit`: their context in tokens.
        complete: request body -> the one choice.
        faults: what happens to the next requests for completions, one each; None lets one through.
        front: what happens to each GET, in place of the list of models.
        seen: path, headers and body of each request; `most`: requests for completions under way at one time, at most.
    """

    def __init__(
        self,
        complete: Callable[[Body], Body] = echo,
        *,
        names: Sequence[str] = ("tiny",),
        limit: int | None = None,
        faults: Sequence[Fault | None] = (),
        front: Fault | None = None,
        tokenizer: Any = None,
        delay: float = 0.0,
    ) -> None:
        self.complete, self.names, self.limit, self.front, self.tokenizer = complete, names, limit, front, tokenizer
        self.faults = list(faults)
        self.delay = delay
        self.seen: list[tuple[str, dict[str, str], Body | None]] = []
        self.most = self.under_way = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def asked(self) -> list[Body]:
        """The bodies of requests for completions."""
        return [body for path, _, body in self.seen if path == "/v1/completions" and body is not None]

    def next_fault(self) -> Fault | None:
        with self.lock:
            return self.faults.pop(0) if self.faults else None

    @contextmanager
    def working(self) -> Iterator[None]:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(self.delay)
        yield
        with self.lock:
            self.under_way -= 1

    def __enter__(self) -> "Stub":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
