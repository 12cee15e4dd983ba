"""Text into token ids: one way of encoding a prompt, for training and for evaluation alike."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from soka_cli.data.load import require_columns
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


@dataclass
class Ledger:
    """What became of the rows: `read` = `used` + the sum of `dropped`.

    `truncated` rows are used and lost their end (and the end-of-sequence token) at max_length; `apart` rows had their target
    tokenised on its own, because prompt and target together do not begin with the prompt's tokens.
    """

    read: int = 0
    used: int = 0
    truncated: int = 0
    apart: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "dropped": dict(self.dropped)}


def encode_prompt(tokenizer: Any, prompt_text: str) -> list[int]:
    """The ids that a model is fed for a prompt: one BOS where the tokenizer has one, no EOS.

    A text that begins with the BOS's own spelling (as chat templates write it) gets no second one.
    """
    return _encode(tokenizer, [prompt_text])[0]


def encode_rows(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], *, source: SourceSection, template: str, max_length: int
) -> tuple[list[EncodedRow], Ledger]:
    """Rows of a data source -> `input_ids` and `labels` (-100 over the prompt, EOS learnt), and the ledger.

    The prompt's ids are those of `encode_prompt`. Rows are cut on the right at `max_length` tokens.

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
    encoded: list[EncodedRow] = []
    ledger = Ledger(read=len(rows))
    for start in range(0, len(rows), CHUNK):
        examples = dict(_examples(rows[start : start + CHUNK], start, source, ledger))
        texts = [_texts(tokenizer, template, example) for example in examples.values()]
        prompts = _encode(tokenizer, [prompt for prompt, _ in texts])
        wholes = _encode(tokenizer, [prompt + target for prompt, target in texts])
        for number, (_, target), prompt_ids, whole_ids in zip(examples, texts, prompts, wholes, strict=True):
            target_ids = _target_ids(tokenizer, target, prompt_ids, whole_ids, ledger)
            if row := _row(number, prompt_ids, target_ids, max_length, ledger):
                encoded.append(row)
    if not encoded:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in ledger.dropped.items())
        raise SokaError(
            "There is nothing to learn: no row has a supervised token.",
            where=f"{source.path}, {ledger.read} rows",
            why=reasons,
            hint="raise data.max_length, or correct data.train.prompt and data.train.target",
            exit_code=ExitCode.TRAINING,
        )
    return encoded, ledger


def _examples(rows: Sequence[Mapping[str, Any]], start: int, source: SourceSection, ledger: Ledger) -> Iterator[tuple[int, Example]]:
    """Number, prompt and target of each row that has both; the others are counted in the ledger."""
    task = task_named(source.task) if source.task is not None else None
    columns = list(task.fields) if task is not None else [str(source.prompt), str(source.target)]
    for index, row in enumerate(rows, start=start):
        require_columns(row, columns, f"{source.path}, row {index}")
        if task is not None:
            example = task.example(dict(row), index)
        else:
            prompt, target = (row[column] for column in columns)
            if not isinstance(prompt, str) or not isinstance(target, str):
                ledger.dropped["prompt or target is no text"] += 1
                continue
            example = Example(id=str(index), prompt=prompt, target=target, gold="")
        if example.target.strip():
            yield index, example
        else:
            ledger.dropped["the target is empty"] += 1


def _texts(tokenizer: Any, template: str, example: Example) -> tuple[str, str]:
    """The words that the model reads and those that it learns to write."""
    if template != "chat":
        return render_example(template, example)
    if not tokenizer.chat_template:
        raise SokaError(
            "The tokenizer has no chat template.",
            where="data.template: chat",
            hint="set data.template to alpaca or plain, or name a chat model",
            exit_code=ExitCode.USAGE,
        )
    question = [{"role": "user", "content": example.prompt}]
    answer = [{"role": "assistant", "content": example.target}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(question + answer, tokenize=False)
    if not whole.startswith(prompt):  # templates that put something else before the answer when they ask for one
        return prompt, example.target
    return prompt, whole[len(prompt) :]


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


def _target_ids(tokenizer: Any, target: str, prompt_ids: list[int], whole_ids: list[int], ledger: Ledger) -> list[int]:
    """The ids behind the prompt, ending in one EOS."""
    eos = tokenizer.eos_token_id
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        ids = whole_ids[len(prompt_ids) :]
    else:
        ids = tokenizer(target, add_special_tokens=False, verbose=False).input_ids
        ledger.apart += 1
    if eos in ids and not tokenizer.decode(ids[len(ids) - ids[::-1].index(eos) :]).strip():
        ids = ids[: len(ids) - ids[::-1].index(eos)]  # a chat template's own end of turn, and the line break behind it
        return ids
    return [*ids, eos]


def _row(number: int, prompt_ids: list[int], target_ids: list[int], max_length: int, ledger: Ledger) -> EncodedRow | None:
    """One training row, or None where nothing of the target is left to learn (the first token of a row is never predicted)."""
    input_ids = [*prompt_ids, *target_ids]
    labels = [*[IGNORED] * len(prompt_ids), *target_ids]
    if max(len(prompt_ids), 1) >= max_length:
        ledger.dropped["the prompt fills max_length"] += 1
        return None
    ledger.used += 1
    ledger.truncated += len(input_ids) > max_length
    input_ids, labels = input_ids[:max_length], labels[:max_length]
    ledger.tokens += len(input_ids)
    ledger.supervised_tokens += sum(label != IGNORED for label in labels[1:])
    ledger.longest = max(ledger.longest, len(input_ids))
    return {"input_ids": input_ids, "labels": labels, "row": number}
