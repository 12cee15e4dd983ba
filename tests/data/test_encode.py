"""Prompts are encoded as evaluation feeds them, answers learn to end, and every row is accounted for."""

from typing import Any

import pytest

from soka_cli.data.encode import IGNORED, encode_prompt, encode_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import SourceSection
from soka_cli.tasks.base import task_named
from soka_cli.tasks.template import render_example
from tests import builders

GSM8K = SourceSection(path="rows.jsonl", task="gsm8k")
COLUMNS = SourceSection(path="rows.jsonl", prompt="question", target="answer")


def llama2() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(builders.shared_folder("models", "llama2-tokenizer"))


def tokenizers() -> list[Any]:
    return [builders.byte_tokenizer(), llama2()]


def encoded(tokenizer: Any, rows: Any, source: SourceSection = GSM8K, template: str = "plain", max_length: int = 512) -> Any:
    return encode_rows(tokenizer, rows, source=source, template=template, max_length=max_length)


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_rows_prompt_is_what_evaluation_feeds(template: str) -> None:
    rows = builders.gsm8k_rows(5)
    for tokenizer in tokenizers():
        for row, made in zip(rows, encoded(tokenizer, rows, template=template)[0], strict=True):
            prompt = encode_prompt(tokenizer, render_example(template, task_named("gsm8k").example(row, 0))[0])
            masked = [token for token, label in zip(made["input_ids"], made["labels"], strict=True) if label == IGNORED]
            assert masked == prompt


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_one_bos_leads_and_one_learnt_eos_ends(template: str) -> None:
    for tokenizer in tokenizers():
        for row in encoded(tokenizer, builders.gsm8k_rows(3), template=template)[0]:
            assert [index for index, token in enumerate(row["input_ids"]) if token == tokenizer.bos_token_id] == [0]
            assert row["labels"][-1] == row["input_ids"][-1] == tokenizer.eos_token_id
            assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_the_words_come_back_out_of_the_ids() -> None:
    row = builders.gsm8k_rows(1)[0]
    for tokenizer in tokenizers():
        made = encoded(tokenizer, [row])[0][0]
        text = tokenizer.decode(made["input_ids"], skip_special_tokens=True)
        assert text == f"Question: {row['question']}\nAnswer: {row['answer']}"


def test_llama_2_keeps_the_prompt_of_real_rows_as_a_prefix() -> None:
    from soka_cli.data.load import load_rows

    rows = load_rows(str(builders.shared_folder("data", "gsm8k", "train.jsonl")), rows=600)
    for template in ("plain", "alpaca"):
        _, ledger = encoded(llama2(), rows, template=template, max_length=1024)
        assert (ledger.used, ledger.apart, ledger.truncated) == (600, 0, 0)


def test_a_target_that_merges_with_the_prompt_is_tokenised_on_its_own() -> None:
    tokenizer = llama2()
    made, ledger = encoded(tokenizer, [{"question": "The answ", "answer": "ers are here"}], source=COLUMNS)
    assert ledger.apart == 1
    prompt = encode_prompt(tokenizer, "The answ")
    assert made[0]["input_ids"][: len(prompt)] == prompt
    assert made[0]["labels"] == [IGNORED] * len(prompt) + made[0]["input_ids"][len(prompt) :]


def test_a_tokenizer_that_writes_an_eos_itself_gives_none_in_the_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = builders.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    assert encode_prompt(tokenizer, "ab") == encode_prompt(builders.byte_tokenizer(), "ab")
    assert encoded(tokenizer, builders.gsm8k_rows(3))[0] == encoded(builders.byte_tokenizer(), builders.gsm8k_rows(3))[0]


def test_a_chat_row_follows_the_tokenizers_template_with_one_bos() -> None:
    tokenizer = builders.byte_tokenizer(chat=True)
    row = encoded(tokenizer, [{"question": "hi", "answer": "yes"}], source=COLUMNS, template="chat")[0][0]
    assert tokenizer.decode(row["input_ids"]) == "<s>[user]hi</s>[assistant]yes</s>"
    learnt = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learnt) == "yes</s>"


def test_a_line_break_behind_a_templates_end_of_turn_is_not_learnt() -> None:
    tokenizer = builders.byte_tokenizer(chat=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "{{ eos_token }}\n")
    row = encoded(tokenizer, [{"question": "hi", "answer": "yes"}], source=COLUMNS, template="chat")[0][0]
    assert row["labels"][-1] == row["input_ids"][-1] == tokenizer.eos_token_id


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(SokaError) as failure:
        encoded(builders.byte_tokenizer(), builders.gsm8k_rows(1), template="chat")
    assert failure.value.exit_code is ExitCode.USAGE


def test_cutting_on_the_right_is_counted_and_keeps_the_prompt() -> None:
    tokenizer = builders.byte_tokenizer()
    whole = encoded(tokenizer, builders.gsm8k_rows(1))[0][0]
    length = len(whole["input_ids"]) - 1
    made, ledger = encoded(tokenizer, builders.gsm8k_rows(1), max_length=length)
    assert made[0]["input_ids"] == whole["input_ids"][:length] and made[0]["labels"] == whole["labels"][:length]
    assert (ledger.truncated, ledger.used, ledger.longest) == (1, 1, length)


def test_the_ledger_counts_rows_tokens_and_reasons() -> None:
    rows: list[dict[str, Any]] = [
        {"question": "abc", "answer": "de"},
        {"question": "x" * 60, "answer": "lost"},
        {"question": "abc", "answer": "  "},
        {"question": None, "answer": "de"},
    ]
    made, ledger = encoded(builders.byte_tokenizer(), rows, source=COLUMNS, max_length=32)
    assert [row["row"] for row in made] == [0]
    assert ledger.to_mapping() == {
        "read": 4,
        "used": 1,
        "truncated": 0,
        "apart": 0,
        "tokens": 7,
        "supervised_tokens": 3,
        "longest": 7,
        "dropped": {"the target is empty": 1, "prompt or target is no text": 1, "the prompt fills max_length": 1},
        "dropped_rows": {"the target is empty": [2], "prompt or target is no text": [3], "the prompt fills max_length": [1]},
        "truncated_rows": [],
    }


def test_no_supervised_token_at_all_is_nothing_to_learn() -> None:
    with pytest.raises(SokaError) as failure:
        encoded(builders.byte_tokenizer(), builders.gsm8k_rows(3), max_length=4)
    assert failure.value.exit_code is ExitCode.TRAINING
    assert "3 rows: the prompt fills max_length" in failure.value.why


def test_a_missing_column_names_those_that_are_there() -> None:
    with pytest.raises(SokaError) as failure:
        encoded(builders.byte_tokenizer(), [{"query": "a", "response": "b"}], source=COLUMNS)
    assert failure.value.exit_code is ExitCode.DATA
    assert "query, response" in failure.value.why
