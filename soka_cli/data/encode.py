"""Text into token ids: one way of encoding a prompt, for training and for evaluation alike."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypedDict

from soka_cli.data.conversation import ChatTemplate, UnlearnableError, messages_of
from soka_cli.data.ledger import Ledger
from soka_cli.data.load import require_columns
from soka_cli.data.passage import Passage
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import SourceSection
from soka_cli.tasks.base import Example, task_named
from soka_cli.tasks.template import render_example

IGNORED = -100  # the label that the loss leaves out
CHUNK = 512  # rows tokenised together


class EncodedRow(TypedDict):
    """One training row; `row` is its number in the data source, for messages."""

    input_ids: list[int]
    labels: list[int]
    row: int


def encode_prompt(tokenizer: Any, prompt_text: str) -> list[int]:
    """The ids that a model is fed for a prompt: one BOS where the tokenizer has one, no EOS.

    A text that begins with the BOS's own spelling (as chat templates write it) gets no second one.
    """
    return _encode(tokenizer, [prompt_text])[0]


def encode_rows(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    source: SourceSection,
    template: str,
    max_length: int,
    numbers: Sequence[int] | None = None,
) -> tuple[list[EncodedRow], Ledger]:
    """Rows of a data source -> `input_ids` and `labels` (-100 over what is not learnt, EOS learnt), and the ledger.

    The prompt's ids are those of `encode_prompt`. Rows are cut on the right at `max_length` tokens. `numbers` are the rows' places
    in the source; None counts them from 0.

    Raises:
        SokaError: exit 4 for a missing column, exit 7 where no row has a supervised token.
    """
    if tokenizer.eos_token_id is None:
        raise SokaError(
            "The tokenizer has no end-of-sequence token, so no answer could end.",
            where="model.name",
            hint="set eos_token in the model's tokenizer_config.json",
            exit_code=ExitCode.ENVIRONMENT,
        )
    numbers = range(len(rows)) if numbers is None else numbers
    encoded: list[EncodedRow] = []
    ledger = Ledger(read=len(rows))
    reader = PassageReader(tokenizer, source, template)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        passages = dict(_passages(reader, numbers[part], rows[part], ledger))
        for number, (ids, labels) in zip(passages, _ids_and_labels(tokenizer, list(passages.values()), ledger), strict=True):
            if row := _row(number, ids, labels, max_length, ledger):
                encoded.append(row)
    if not encoded:
        raise SokaError(
            "There is nothing to learn: no row has a supervised token.",
            where=f"{source.path}, {ledger.read} rows",
            why=ledger.reasons(),
            hint="raise data.max_length, or correct the columns that data.train names",
            exit_code=ExitCode.TRAINING,
        )
    return encoded, ledger


class PassageReader:
    """Makes rows of one source into text: by its task, its conversations, or its two columns and the recipe's template."""

    def __init__(self, tokenizer: Any, source: SourceSection, template: str) -> None:
        self.source = source
        self.template = template
        self.task = task_named(source.task) if source.task is not None else None
        self.chat = ChatTemplate(tokenizer) if source.messages is not None or template == "chat" else None
        if self.task is not None:
            self.columns = list(self.task.fields)
        else:
            self.columns = [source.messages] if source.messages is not None else [str(source.prompt), str(source.target)]

    def passage(self, row: Mapping[str, Any], number: int) -> Passage:
        """One row's text.

        Raises:
            UnlearnableError: the row teaches nothing.
            SokaError: exit 4 for a missing column, or a chat template in which turns cannot be told apart.
        """
        where = f"{self.source.path}, row {number}"
        require_columns(row, self.columns, where)
        if self.source.messages is not None:
            assert self.chat is not None
            return self.chat.passage(messages_of(row[self.source.messages]), where)
        example = self._example(row, number)
        if not example.prompt.strip():
            raise UnlearnableError("the prompt is empty")
        if not example.target.strip():
            raise UnlearnableError("the target is empty")
        if self.chat is not None:
            question, answer = {"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.target}
            return self.chat.passage([question, answer], where)
        prompt, target = render_example(self.template, example)
        return Passage(prompt + target, ((len(prompt), len(prompt + target)),))

    def _example(self, row: Mapping[str, Any], number: int) -> Example:
        if self.task is not None:
            return self.task.example(dict(row), number)
        prompt, target = (row[column] for column in self.columns)
        if not isinstance(prompt, str) or not isinstance(target, str):
            raise UnlearnableError("prompt or target is no text")
        return Example(id=str(number), prompt=prompt, target=target, gold="")


def _passages(
    reader: PassageReader, numbers: Sequence[int], rows: Sequence[Mapping[str, Any]], ledger: Ledger
) -> Iterator[tuple[int, Passage]]:
    """Number and text of each row that teaches something; the others are counted in the ledger."""
    for number, row in zip(numbers, rows, strict=True):
        try:
            yield number, reader.passage(row, number)
        except UnlearnableError as reason:
            ledger.drop(str(reason), number)


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text with one BOS (where the tokenizer writes one) and without the EOS that some tokenizers put behind."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    encoded: list[list[int]] = [[] for _ in texts]
    for has_bos in (False, True):
        chosen = [index for index, text in enumerate(texts) if bool(bos and text.startswith(bos)) is has_bos]
        if not chosen:
            continue
        found = tokenizer([texts[index] for index in chosen], add_special_tokens=not has_bos, verbose=False).input_ids
        for index, ids in zip(chosen, found, strict=True):
            added_end = bool(ids) and ids[-1] == tokenizer.eos_token_id and not texts[index].endswith(str(eos))
            encoded[index] = ids[:-1] if added_end else ids
    return encoded


def _ids_and_labels(tokenizer: Any, passages: Sequence[Passage], ledger: Ledger) -> Iterator[tuple[list[int], list[int]]]:
    """Ids of each passage, ending in one EOS, and labels over its learnt spans.

    What stands before a learnt span is encoded as evaluation feeds it. Where the whole does not begin with those ids, the text is
    tokenised piece by piece.
    """
    texts = [passage.text[: passage.learnt[-1][1]] for passage in passages]
    cuts = [[cut for span in passage.learnt for cut in span][:-1] for passage in passages]
    heads = iter(_encode(tokenizer, [text[:cut] for text, own in zip(texts, cuts, strict=True) for cut in own]))
    for text, own, ids in zip(texts, cuts, _encode(tokenizer, texts), strict=True):
        beginnings = [next(heads) for _ in own]
        places = [len(beginning) for beginning in beginnings]
        if any(ids[:place] != beginning for place, beginning in zip(places, beginnings, strict=True)):
            ledger.apart += 1
            ids, places = _by_pieces(tokenizer, beginnings[0], [text[begin:end] for begin, end in pairwise([*own, len(text)])])
        if ids[places[-1] :][-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        labels = [IGNORED] * len(ids)
        for begin, end in zip(places[::2], [*places[1::2], len(ids)], strict=True):
            labels[begin:end] = ids[begin:end]
        yield ids, labels


def _by_pieces(tokenizer: Any, beginning: list[int], pieces: Sequence[str]) -> tuple[list[int], list[int]]:
    """Ids of the pieces behind `beginning`, each tokenised on its own, and where each of them begins."""
    ids, places = list(beginning), []
    for piece in pieces:
        places.append(len(ids))
        ids += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
    return ids, places


def _row(number: int, ids: list[int], labels: list[int], max_length: int, ledger: Ledger) -> EncodedRow | None:
    """One training row, or None where nothing that is learnt is left (the first token of a row is never predicted)."""
    row: EncodedRow = {"input_ids": ids[:max_length], "labels": [IGNORED, *labels[1:max_length]], "row": number}
    supervised = sum(label != IGNORED for label in row["labels"])
    if not supervised:
        ledger.drop("the prompt fills max_length", number)
        return None
    ledger.use(number, tokens=len(row["input_ids"]), supervised=supervised, truncated=len(ids) > max_length)
    return row
