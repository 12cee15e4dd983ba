"""Greedy completions: exact stops, ends, padding and context."""

from typing import Any

import pytest
import torch

from soka_cli.stages.completions import Completer
from tests.builders import byte_tokenizer, tiny_model

PROMPTS = ["Question: how many?", "a", "2 and 2 are", "A rather longer prompt that goes on for a while"]


def encoded(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(prompt).input_ids for prompt in PROMPTS]


def completer_of(kind: str = "llama", *, stops: tuple[str, ...] = (), length: int = 16, ends: list[int] | None = None) -> Completer:
    model = tiny_model(kind, seed=3)
    if ends is not None:
        model.generation_config.eos_token_id = ends
    return Completer(model, byte_tokenizer(), stops=stops, max_new_tokens=length)


def plain_greedy(model: Any, prompt: list[int], length: int) -> list[int]:
    """One token after the other by whole forward passes: no cache, no padding, no generate."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_padded_batches_write_what_single_forward_passes_write(kind: str) -> None:
    completer = completer_of(kind)
    prompts = encoded(byte_tokenizer())
    wanted = [completer.wording(plain_greedy(completer.model, prompt, 16)) for prompt in prompts]
    assert [completion.text for completion in completer.complete(prompts)] == wanted
    assert [completer.complete([prompt])[0].text for prompt in prompts] == wanted


def test_settings_that_a_model_brings_do_not_bend_greedy_decoding() -> None:
    prompts = encoded(byte_tokenizer())
    wanted = completer_of().complete(prompts)
    model = tiny_model(seed=3)
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=9.0, max_length=3, no_repeat_ngram_size=1)
    found = Completer(model, byte_tokenizer(), stops=(), max_new_tokens=16).complete(prompts)
    assert found == wanted


def test_stop_strings_are_cut_exactly_and_end_their_row_alone() -> None:
    prompts = encoded(byte_tokenizer())
    free = completer_of().complete(prompts)
    stop = free[0].text[5:8]
    stopped = completer_of(stops=("never written", stop)).complete(prompts)
    for before, after in zip(free, stopped, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.stop_reason == ("stop" if stop in before.text else "length")
    assert stopped[0].tokens < free[0].tokens


def test_generation_ends_when_all_rows_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = encoded(byte_tokenizer())[:1]
    completer = completer_of()
    stop = completer.complete(prompts)[0].text[2:4]
    completer = completer_of(stops=(stop,), length=200)
    steps = 0
    forward = completer.model.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*arguments, **options)

    monkeypatch.setattr(completer.model, "forward", counted)
    completion = completer.complete(prompts)[0]
    assert completion.stop_reason == "stop"
    assert steps == completion.tokens


def test_an_end_of_sequence_of_the_model_ends_a_row_and_is_not_written() -> None:
    prompts = encoded(byte_tokenizer())
    end = plain_greedy(completer_of().model, prompts[0], 6)[5]
    completer = completer_of(ends=[end, 2])
    assert completer.ends == sorted({end, 2})
    for prompt, completion in zip(prompts, completer.complete(prompts), strict=True):
        ids = plain_greedy(completer.model, prompt, 16)
        assert (completion.stop_reason == "eos") is (end in ids)
        assert completion.text == completer.wording(ids[: ids.index(end)] if end in ids else ids)


def test_special_tokens_are_left_out_unless_they_spell_a_stop_string() -> None:
    tokenizer = byte_tokenizer()
    ids = [*tokenizer("7", add_special_tokens=False).input_ids, 1, 2, *tokenizer("8", add_special_tokens=False).input_ids]
    assert Completer(tiny_model(), tokenizer, stops=(), max_new_tokens=1).wording.cut(ids) == ("78", False)
    assert Completer(tiny_model(), tokenizer, stops=("</s>",), max_new_tokens=1).wording.cut(ids) == ("7", True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_row_at_the_end_of_its_context_does_not_shorten_the_others(kind: str) -> None:
    completer = completer_of(kind, length=30)
    prompts = [[1, *[70] * 499], [1, 80, 81], [1, *[71] * 600], [1, *[72] * 489]]
    found: dict[int, Any] = {}
    for batch in completer.batches(prompts, 4):
        found |= dict(zip(batch, completer.complete([prompts[place] for place in batch]), strict=True))
    assert [found[place].tokens for place in range(4)] == [12, 30, 0, 22]
    assert [found[place].stop_reason for place in range(4)] == ["context", "length", "context", "context"]
    assert found[1].text == completer.complete([prompts[1]])[0].text


def test_batches_hold_each_prompt_once_longest_first() -> None:
    completer = completer_of()
    prompts = [[1] * length for length in (3, 9, 1, 9, 4)]
    batches = list(completer.batches(prompts, 2))
    order = [place for batch in batches for place in batch]
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert [len(prompts[place]) for place in order] == [9, 9, 4, 3, 1]
    assert max(map(len, batches)) == 2


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = encoded(byte_tokenizer())
    wanted = completer_of().complete(prompts)
    told: list[str] = []
    completer = completer_of()
    completer.said = told.append
    whole = Completer._generate

    def small_memory(self: Completer, some: list[list[int]], seeds: list[int]) -> Any:
        if len(some) > 1:
            raise torch.OutOfMemoryError("no room")
        return whole(self, some, seeds)

    monkeypatch.setattr(Completer, "_generate", small_memory)
    assert [one.text for one in completer.complete(prompts)] == [one.text for one in wanted]
    assert len(told) == 3


def test_the_smallest_gap_is_the_least_lead_of_the_best_token() -> None:
    prompt = encoded(byte_tokenizer())[0]
    completer = completer_of()
    ids = plain_greedy(completer.model, prompt, 16)
    with torch.inference_mode():
        logits = completer.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2).values
    gap = completer.complete([prompt])[0].smallest_gap
    assert gap == pytest.approx(float((best[:, 0] - best[:, 1]).min()), rel=1e-2, abs=1e-5)
