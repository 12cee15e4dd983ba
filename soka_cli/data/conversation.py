"""Conversations as the tokenizer's chat template writes them, and which part of that the assistant says."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from soka_cli.data.passage import Passage
from soka_cli.errors import ExitCode, SokaError

Message = dict[str, Any]

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
"""Roles in the form {from, value}, which some data sets have -> those of {role, content}."""

GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
BEGIN, END = "\ufdd0", "\ufdd1"  # no characters of any text


class UnlearnableError(Exception):
    """A row that teaches nothing; the message is the ledger's reason."""


def messages_of(value: Any) -> list[Message]:
    """A conversation in the form {role, content}, from that form, from {from, value}, or from JSON text of either.

    Fields that are null are left out: tables fill them in where other rows have them.

    Raises:
        UnlearnableError: the value is no conversation.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise UnlearnableError("the conversation is no list of messages") from None
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise UnlearnableError("the conversation is no list of messages")
    found = [{str(name): inner for name, inner in message.items() if inner is not None} for message in value]
    found = [
        {"role": ROLES.get(str(message["from"]), str(message["from"])), "content": message["value"]}
        if {"from", "value"} <= message.keys()
        else message
        for message in found
    ]
    if any("role" not in message for message in found):
        raise UnlearnableError("a message has no role")
    return found


class ChatTemplate:
    """The tokenizer's own way of writing conversations.

    Args:
        tokenizer: has a chat template.

    Raises:
        SokaError: exit 2, it has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise SokaError(
                "The tokenizer has no chat template.",
                where="data.template: chat, or data.train.messages",
                hint="set data.template to alpaca or plain with columns prompt and target, or name a chat model",
                exit_code=ExitCode.USAGE,
            )
        self.tokenizer = tokenizer
        self.template = tokenizer.get_chat_template()
        marked = GENERATION.sub(_marked, self.template)
        self.marked = marked if marked != self.template else None
        added = (str(token) for token in tokenizer.added_tokens_decoder.values())
        self.ends = tuple(token for token in {*tokenizer.all_special_tokens, *added} if token.strip() and token != tokenizer.bos_token)

    def passage(self, messages: Sequence[Message], where: str) -> Passage:
        """The conversation's text, in which every turn of the assistant is learnt together with the token that ends it.

        The template's own `{% generation %}` blocks say which part that is; where it has none, the text is written turn by turn.

        Raises:
            UnlearnableError: no turn of the assistant, or the template refuses the conversation.
            SokaError: exit 4, the template has no such blocks and rewrites earlier turns, so that none can be told from the whole.
        """
        spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not spoken:
            raise UnlearnableError("the conversation has no turn of the assistant")
        if all(_silent(messages[index]) for index in spoken):
            raise UnlearnableError("the target is empty")
        text = self._write(messages)
        spans = self._marked_spans(messages, text) if self.marked else self._turns(messages, text, spoken, where)
        learnt = [(start, self._end(text, start, end)) for start, end in spans if text[start:end].strip()]
        if not learnt:
            raise UnlearnableError("the template marks nothing of the assistant's")
        return Passage(text[: learnt[-1][1]], tuple(learnt))

    def _write(self, messages: Sequence[Message], *, prompt: bool = False, template: str | None = None) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompt, chat_template=template or self.template
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnlearnableError(f"the chat template refuses it: {why}") from error

    def _marked_spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """What stands in the template's generation blocks."""
        pieces = re.split(f"([{BEGIN}{END}])", self._write(messages, template=self.marked))
        spans, place, begun = [], 0, 0
        for piece in pieces:
            if piece == BEGIN:
                begun = place
            elif piece == END:
                spans.append((begun, place))
            else:
                place += len(piece)
        assert "".join(piece for piece in pieces if piece not in (BEGIN, END)) == text, "marks change what a template writes"
        return spans

    def _turns(self, messages: Sequence[Message], text: str, spoken: Sequence[int], where: str) -> list[tuple[int, int]]:
        """Each turn from where the template asks for an answer to where it has written one."""
        spans = []
        for index in spoken:
            asked = self._write(messages[:index], prompt=True)
            answered = self._write(messages[: index + 1])
            if not (answered.startswith(asked) and text.startswith(answered)):
                raise SokaError(
                    f"The tokenizer's chat template writes the turn of message {index} otherwise when more of the conversation is there.",
                    where=where,
                    why=f"{_tail(asked)} is asked, {_tail(answered)} is answered, and the whole does not begin with the one and the other",
                    hint="take a chat template with {% generation %} blocks around the assistant's turns, or rows of one turn each",
                    exit_code=ExitCode.DATA,
                )
            if not _silent(messages[index]):
                spans.append((len(asked), len(answered)))
        return spans

    def _end(self, text: str, start: int, end: int) -> int:
        """A span's end behind the token that ends the turn: not behind the line break that follows it, nor in front of it."""
        spoken = text[start:end].rstrip()
        if spoken.endswith(self.ends):
            return start + len(spoken)
        follows = [token for token in self.ends if text.startswith(token, end)] if self.marked else []
        return end + max(map(len, follows), default=0)


def _marked(block: re.Match[str]) -> str:
    """A block that writes a mark, with the white space control of the one that it replaces."""
    return f"{{%{block[1]} if true %}}{{{{ '{END if block[2] else BEGIN}' }}}}{{% endif {block[3]}%}}"


def _silent(message: Message) -> bool:
    """Whether the assistant says nothing and calls no tool."""
    content = message.get("content")
    return not (content.strip() if isinstance(content, str) else content) and not message.get("tool_calls")


def _tail(text: str) -> str:
    return repr(text[-40:])
