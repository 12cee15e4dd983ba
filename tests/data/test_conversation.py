"""What of a conversation is learnt: the assistant's turns, each with the token that ends it, whatever the template looks like."""

import json
from typing import Any

import pytest

from soka_cli.data.encode import IGNORED, encode_prompt, encode_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import SourceSection
from tests import builders

SOURCE = SourceSection(path="rows.jsonl", messages="messages")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2 it is"},
]
PLAIN = "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
ASKING = "{% if add_generation_prompt %}[assistant]{% endif %}"
LINES = """{{ bos_token }}{% for message in messages %}
[{{ message.role }}]
{{ message.content }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]
{% endif %}"""
MARKED = """{{ bos_token }}{% for message in messages %}
    {%- if message.role == 'assistant' %}
[assistant]
        {%- generation %}
{{ message.content }}
        {%- endgeneration %}{{ eos_token }}
    {% else %}
[{{ message.role }}]{{ message.content }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""
FORGETFUL = (  # writes the assistant's earlier turns otherwise than its last
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]"
    "{% if message.role == 'assistant' and not loop.last %}...{% else %}{{ message.content }}{% endif %}{{ eos_token }}{% endfor %}"
    + ASKING
)
STRICT = PLAIN.replace("[{{", "{% if message.role == 'tool' %}{{ raise_exception('No tools here') }}{% endif %}[{{") + ASKING


def tokenizer_with(template: str) -> Any:
    tokenizer = builders.byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encoded(template: str, *conversations: Any, max_length: int = 512) -> Any:
    rows = [{"messages": conversation} for conversation in conversations]
    return encode_rows(tokenizer_with(template), rows, source=SOURCE, template="plain", max_length=max_length)


def learnt(template: str, row: Any) -> list[str]:
    """The texts of the learnt runs."""
    runs: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer_with(template).decode(run) for run in runs if run]


@pytest.mark.parametrize("template", [PLAIN + ASKING, LINES], ids=["a line", "lines"])
def test_every_turn_of_the_assistant_is_learnt_with_its_end_and_nothing_else(template: str) -> None:
    row = encoded(template, TALK)[0][0]
    assert learnt(template, row) == ["1</s>", "2 it is</s>"]
    text = tokenizer_with(template).apply_chat_template(TALK, tokenize=False)
    assert tokenizer_with(template).decode(row["input_ids"]) == text.rstrip("\n")


def test_a_template_with_generation_blocks_says_itself_what_is_learnt() -> None:
    row = encoded(MARKED, TALK)[0][0]
    assert learnt(MARKED, row) == ["1</s>", "2 it is</s>"]
    text = tokenizer_with(MARKED).apply_chat_template(TALK, tokenize=False)
    assert text.startswith(tokenizer_with(MARKED).decode(row["input_ids"]))


def test_what_precedes_a_turn_is_what_evaluation_would_feed() -> None:
    tokenizer = tokenizer_with(PLAIN + ASKING)
    row = encoded(PLAIN + ASKING, TALK)[0][0]
    for asked in (TALK[:2], TALK[:4]):
        prompt = encode_prompt(tokenizer, tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        assert row["input_ids"][: len(prompt)] == prompt and row["labels"][len(prompt)] != IGNORED


def test_prompt_and_target_under_template_chat_are_a_conversation_of_two() -> None:
    pair = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    columns = SourceSection(path="rows.jsonl", prompt="q", target="a")
    tokenizer = tokenizer_with(PLAIN + ASKING)
    by_columns = encode_rows(tokenizer, [{"q": "One?", "a": "1"}], source=columns, template="chat", max_length=512)[0]
    assert by_columns == encoded(PLAIN + ASKING, pair)[0]


def test_a_question_at_the_end_is_not_read() -> None:
    asked = [*TALK, {"role": "user", "content": "Three?"}]
    assert encoded(PLAIN + ASKING, asked)[0] == encoded(PLAIN + ASKING, TALK)[0]


def test_other_forms_of_the_same_conversation_encode_alike() -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    other = [{"from": names[message["role"]], "value": message["content"]} for message in TALK]
    from_table = [{**message, "tool_calls": None, "from": None} for message in TALK]
    rows = encoded(PLAIN + ASKING, TALK, other, json.dumps(TALK), from_table)[0]
    assert all({**row, "row": 0} == rows[0] for row in rows)


def test_a_template_that_rewrites_earlier_turns_is_refused_by_row() -> None:
    with pytest.raises(SokaError) as failure:
        encoded(FORGETFUL, TALK)
    assert failure.value.exit_code is ExitCode.DATA
    assert "rows.jsonl, row 0" in failure.value.where and "generation" in failure.value.hint
    assert learnt(FORGETFUL, encoded(FORGETFUL, TALK[:3])[0][0]) == ["1</s>"]


def test_rows_that_are_no_conversation_are_counted_by_reason() -> None:
    tool = [*TALK[:2], {"role": "tool", "content": "x"}, TALK[2]]
    silent = [TALK[1], {"role": "assistant", "content": " "}]
    rows = [TALK, TALK[:2], silent, "no json", 3, [{"content": "x"}], tool]
    made, ledger = encoded(STRICT, *rows)
    assert [row["row"] for row in made] == [0]
    assert ledger.dropped_rows == {
        "the conversation has no turn of the assistant": [1],
        "the target is empty": [2],
        "the conversation is no list of messages": [3, 4],
        "a message has no role": [5],
        "the chat template refuses it: No tools here": [6],
    }


def test_a_conversation_cut_behind_its_first_answer_keeps_that_answer() -> None:
    whole = encoded(PLAIN + ASKING, TALK)[0][0]
    length = whole["labels"].index(builders.byte_tokenizer().eos_token_id) + 4
    made, ledger = encoded(PLAIN + ASKING, TALK, max_length=length)
    assert learnt(PLAIN + ASKING, made[0]) == ["1</s>"]
    assert (ledger.truncated, ledger.truncated_rows) == (1, [0])


def test_llama_2_writes_a_second_turn_with_the_ids_of_the_whole() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builders.shared_folder("models", "llama2-tokenizer"))
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    talk = TALK[1:]
    made, ledger = encode_rows(tokenizer, [{"messages": talk}], source=SOURCE, template="chat", max_length=512)
    whole = tokenizer(tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False).input_ids
    assert made[0]["input_ids"] == whole
    assert ledger.apart == 0 and made[0]["labels"].count(tokenizer.eos_token_id) == 2


def test_a_row_that_begins_with_what_is_learnt_leaves_its_first_token_out() -> None:
    """Nothing comes before it; in a pack the row in front would have to predict it."""
    tokenizer = tokenizer_with(
        "{% for message in messages %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    )
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.bos_token = None
    made, ledger = encode_rows(tokenizer, [{"messages": [TALK[4]]}], source=SOURCE, template="plain", max_length=512)
    assert made[0]["labels"] == [IGNORED, *made[0]["input_ids"][1:]]
    assert ledger.supervised_tokens == len(made[0]["input_ids"]) - 1 == len("2 it is")
