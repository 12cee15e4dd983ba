"""Frames of JSON over a socket: four bytes of length, then the text."""

import json
import os
from typing import Any

LONGEST = 16 << 20  # bytes of one frame
LENGTH_BYTES = 4

Message = dict[str, Any]


class ProtocolError(Exception):
    """The other side sent what no side of ours would send, or too much of it."""


class Channel:
    """One end of a socket pair, by its descriptor. `receive` takes nothing for granted: the other side may be a model's program."""

    def __init__(self, end: int) -> None:
        self.end = end

    def send(self, message: Message) -> None:
        """One message; ProtocolError if it is too long, OSError if nobody listens any more."""
        text = json.dumps(message, separators=(",", ":")).encode()
        if len(text) > LONGEST:
            raise ProtocolError(f"a message of {len(text)} bytes; {LONGEST} is the most")
        rest = memoryview(len(text).to_bytes(LENGTH_BYTES, "big") + text)
        while rest:
            rest = rest[os.write(self.end, rest) :]

    def receive(self) -> Message | None:
        """The next message, None at the end; ProtocolError for anything that is not a JSON object of a proper length."""
        header = self._exactly(LENGTH_BYTES)
        if header is None:
            return None
        length = int.from_bytes(header, "big")
        if length > LONGEST:
            raise ProtocolError(f"a message of {length} bytes; {LONGEST} is the most")
        text = self._exactly(length)
        if text is None:
            raise ProtocolError("a message that ends in the middle")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError("a message that is not JSON") from error
        if not isinstance(message, dict):
            raise ProtocolError("a message that is no JSON object")
        return message

    def _exactly(self, count: int) -> bytes | None:
        """`count` bytes; None where the other side is gone before the first or in between."""
        parts = bytearray()
        while len(parts) < count:
            try:
                part = os.read(self.end, min(count - len(parts), 1 << 16))
            except ConnectionError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
