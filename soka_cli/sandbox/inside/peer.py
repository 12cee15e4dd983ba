"""Questions and answers over a channel, from both sides: whoever waits for an answer serves the other's questions meanwhile."""

from collections.abc import Callable

from .channel import Channel, Message, ProtocolError
from .raised import description


class EndedError(Exception):
    """The other side is not there any more."""


class Peer:
    """One side of a conversation. Questions nest like calls, since each side waits for its answer.

    Args:
        serve: the answer to a question of the other side.
    """

    def __init__(self, channel: Channel, serve: Callable[[Message], Message]) -> None:
        self._channel = channel
        self._serve = serve

    def ask(self, question: Message) -> Message:
        """The answer to a question (a message with the key `ask`); EndedError if the other side ends first."""
        try:
            self._channel.send(question)
        except OSError as error:
            raise EndedError from error
        while True:
            message = self._channel.receive()
            if message is None:
                raise EndedError
            if "ask" not in message:
                return message
            self._reply(message)

    def serve_all(self) -> None:
        """Answer questions until the other side ends."""
        while (message := self._channel.receive()) is not None:
            if "ask" not in message:
                raise ProtocolError("an answer to no question")
            self._reply(message)

    def _reply(self, question: Message) -> None:
        answer = self._serve(question)
        try:
            try:
                self._channel.send(answer)
            except ProtocolError as error:  # an answer that is too long
                self._channel.send(description(error))
        except OSError as error:
            raise EndedError from error
