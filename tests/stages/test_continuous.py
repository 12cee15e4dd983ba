"""Continuous batching writes what padded batches write, whatever the company."""

import json
import threading
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from soka_cli.data.encode import encode_prompt
from soka_cli.stages import continuous
from soka_cli.stages.answerer import Completion
from soka_cli.stages.completions import Completer
from soka_cli.stages.continuous import ContinuousCompleter, Watch, refusal
from tests.builders import byte_tokenizer, shared_folder, tiny_model
from tests.stages.test_completions import plain_greedy

PROMPTS = [
    [1, *byte_tokenizer()(text, add_special_tokens=False).input_ids]
    for text in ("Question: how many?", "a", "2 and 2 are", "A rather longer prompt that goes on for a while " * 3, "b", "Question: how")
]


def completer_of(kind: str = "llama", *, ends: list[int] | None = None, **options: Any) -> Completer:
    model = tiny_model(kind, seed=3)
    if ends is not None:
        model.generation_config.eos_token_id = ends
    return Completer(model, byte_tokenizer(), **({"stops": (), "max_new_tokens": 16} | options))


def written(completer: Completer, prompts: list[list[int]], size: int, seeds: list[int] | None = None) -> list[Completion]:
    found = dict(one for ended in ContinuousCompleter(completer, size).complete(prompts, seeds or []) for one in ended)
    assert len(found) == len(prompts)
    return [found[place] for place in range(len(prompts))]


def same(found: list[Completion], wanted: list[Completion]) -> bool:
    """Equal, but for what rounding does to the leads."""
    for one, other in zip(found, wanted, strict=True):
        if (one.text, one.stop_reason, one.tokens) != (other.text, other.stop_reason, other.tokens):
            return False
        if one.smallest_gap != pytest.approx(other.smallest_gap, rel=1e-2, abs=1e-4):
            return False
    return True


@pytest.mark.parametrize(("kind", "size"), [("llama", 1), ("llama", 3), ("llama", 8), ("qwen2", 3), ("phi3", 3), ("gpt2", 3), ("opt", 3)])
def test_a_running_batch_writes_what_padded_batches_write(kind: str, size: int) -> None:
    completer = completer_of(kind)
    assert same(written(completer, PROMPTS, size), completer.complete(PROMPTS))


def test_the_order_of_the_prompts_changes_nothing() -> None:
    completer = completer_of()
    backwards = written(completer, PROMPTS[::-1], 2)
    assert same(backwards[::-1], written(completer, PROMPTS, 2))


def test_stop_strings_are_cut_exactly_and_free_their_place() -> None:
    free = completer_of().complete(PROMPTS)
    stops = ("never written", free[0].text[5:8])
    found = written(completer_of(stops=stops), PROMPTS, 2)
    assert same(found, completer_of(stops=stops).complete(PROMPTS))
    assert found[0].stop_reason == "stop" and found[0].tokens < free[0].tokens


def test_a_stop_string_ends_a_prompt_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = completer_of().complete(PROMPTS[:1])[0].text[2:4]
    completer = completer_of(stops=(stop,), max_new_tokens=60)
    steps: list[int] = []
    prepare = Watch.prepare_tensor_args
    monkeypatch.setattr(Watch, "prepare_tensor_args", lambda self, *words, **named: steps.append(1) or prepare(self, *words, **named))
    completion = written(completer, PROMPTS[:1], 1)[0]
    assert len(steps) == completion.tokens + 1


def test_an_end_of_sequence_ends_a_prompt_and_is_not_written() -> None:
    end = plain_greedy(completer_of().model, PROMPTS[0], 6)[5]
    completer = completer_of(ends=[end, 2])
    found = written(completer, PROMPTS, 3)
    assert same(found, completer.complete(PROMPTS))
    assert found[0].stop_reason == "eos" and found[0].tokens <= 6


def test_prompts_at_the_end_of_their_context_keep_to_it() -> None:
    prompts = [[1, *[70] * 499], [1, 80, 81], [1, *[71] * 600], [1, *[72] * 489]]
    found = written(completer_of(max_new_tokens=30), prompts, 4)
    assert [one.tokens for one in found] == [12, 30, 0, 22]
    assert [one.stop_reason for one in found] == ["context", "length", "context", "context"]


def test_samples_depend_on_their_seed_alone() -> None:
    completer = completer_of(temperature=1.5, top_p=0.9)
    seeds = [5, 6, 7, 8, 9, 10]
    together = written(completer, PROMPTS, 6, seeds)
    assert written(completer, PROMPTS[1:2], 1, seeds[1:2]) == together[1:2]
    assert completer.complete(PROMPTS, seeds) == together
    assert written(completer, PROMPTS, 6, [seed + 1 for seed in seeds]) != together


@pytest.mark.parametrize("pages", [40, 3])
def test_a_cache_too_small_for_all_gives_the_same(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """Prompts that had to leave the cache are read again, with what they had written."""
    completer = completer_of(max_new_tokens=60)
    prompts = [[1, *[70 + number] * 20] for number in range(4)]
    running = continuous.running
    monkeypatch.setattr(continuous, "running", lambda *words, blocks, size: running(*words, blocks=min(blocks, pages), size=size))
    assert same(written(completer, prompts, 4), completer.complete(prompts))


def test_what_does_not_fit_into_memory_is_halved_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    completer = completer_of(said=told.append)
    prepare = Watch.prepare_tensor_args

    def small_memory(self: Watch, requests_in_batch: list[Any], arg_storage: Any) -> Any:
        if len(requests_in_batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(self, requests_in_batch, arg_storage)

    monkeypatch.setattr(Watch, "prepare_tensor_args", small_memory)
    found = written(completer, PROMPTS, 6)
    monkeypatch.undo()
    assert same(found, completer.complete(PROMPTS))
    assert [line.split(" with ")[1] for line in told] == ["3.", "2."]


def test_memory_that_one_prompt_exhausts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Watch, **words: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Watch, "prepare_tensor_args", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        written(completer_of(), PROMPTS, 2)


def test_leaving_early_leaves_nothing_behind() -> None:
    answers = ContinuousCompleter(completer_of(), 2).complete(PROMPTS)
    next(answers)
    threads = threading.active_count()
    answers.close()
    assert threading.active_count() == threads - 1
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gpt2", "opt"])
def test_models_with_a_plain_cache_are_asked_in_a_running_batch(kind: str) -> None:
    assert refusal(tiny_model(kind, seed=3), byte_tokenizer(), PROMPTS) == ""


def test_a_model_with_a_state_of_its_own_is_not() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=260, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=2)
    assert refusal(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), byte_tokenizer(), PROMPTS)


def test_a_model_that_would_write_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: one whose attention finds nothing in a running batch."""
    whole = continuous.attention_apart

    def blind(*words: Any, cache: Any = None, **kwargs: Any) -> Any:
        found, _ = whole(*words, cache=cache, **kwargs)
        return found * (cache is None), None

    monkeypatch.setattr(continuous, "attention_apart", blind)
    assert refusal(tiny_model(seed=3), byte_tokenizer(), PROMPTS) == "its first tokens are not those of a padded batch"


def test_prompts_attend_apart_as_under_transformers_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    completer = completer_of()
    wanted = written(completer, PROMPTS, 4)
    monkeypatch.setattr(continuous, "attention_apart", sdpa_attention_forward)
    assert same(written(completer, PROMPTS, 4), wanted)


@pytest.mark.slow
def test_a_trained_model_writes_the_same_in_running_and_padded_batches() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_folder("models", "llama288-math")
    rows = shared_folder("data", "gsm8k", "test.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [encode_prompt(tokenizer, f"Question: {json.loads(row)['question']}\nAnswer:") for row in rows]
    completer = Completer(model, tokenizer, stops=("Question:", " is "), max_new_tokens=48)
    wanted = [one for start in range(0, 24, 8) for one in completer.complete(prompts[start : start + 8])]
    assert same(written(completer, prompts, 16), wanted)
    assert same(written(completer, prompts, 5), wanted)
