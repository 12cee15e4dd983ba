"""Ways of asking, and the words that they use."""

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.base import Example, cut_at
from soka_cli.tasks.gsm8k import Gsm8k
from soka_cli.tasks.protocol import COMMON_STOPS, PROTOCOLS, protocol_named, stops_of, template_digest
from soka_cli.tasks.template import render, render_example

EXAMPLE = Gsm8k().example({"question": "How many?", "answer": "Two.\n#### 2"}, 0)


def test_plain_asks_in_the_data_sets_own_form() -> None:
    prompt, target = render_example(protocol_named("plain").template, EXAMPLE)
    assert prompt + target == "Question: How many?\nAnswer: Two.\n#### 2"


def test_pissa_asks_with_the_training_template_and_no_cue() -> None:
    prompt, target = render_example(protocol_named("pissa").template, EXAMPLE)
    assert prompt.endswith("\n\n### Instruction:\nHow many?\n\n### Response:")
    assert target == "Two.\n#### 2\n"
    assert protocol_named("pissa").stops == ()
    assert "not public" in protocol_named("pissa").reference


def test_columns_without_a_task_stay_as_they_are_under_plain() -> None:
    assert render_example("plain", Example(id="0", prompt="a", target="b", gold="")) == render("plain", "a", "b") == ("a", "b")


def test_braces_in_a_question_are_words_like_others() -> None:
    assert "{target} {prompt} {0}" in render("alpaca", "{target} {prompt} {0}", "")[0]


def test_template_digests_tell_protocols_apart() -> None:
    digests = {template_digest(Gsm8k(), protocol) for protocol in PROTOCOLS.values()}
    assert len(digests) == len(PROTOCOLS)


def test_an_unknown_protocol_or_template_is_refused() -> None:
    for attempt in (lambda: protocol_named("fancy"), lambda: render("chat", "a", "b")):
        with pytest.raises(SokaError) as caught:
            attempt()
        assert caught.value.exit_code == ExitCode.USAGE


def test_text_is_cut_at_the_earliest_stop_string() -> None:
    assert cut_at("2 </s> 3 Question: 4", COMMON_STOPS) == ("2 ", True)
    assert cut_at("2 3", COMMON_STOPS) == ("2 3", False)
    assert cut_at("2 Question:", stops_of("pissa")) == ("2 Question:", False)
