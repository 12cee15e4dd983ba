"""BOS, EOS and padding with Llama 2's own tokenizer, which names no pad token, on a tiny model of its vocabulary."""

from typing import Any

import pytest
import torch

from soka_cli.data.encode import encode_prompt
from soka_cli.stages.completions import Completer
from soka_cli.stages.continuous import ContinuousCompleter
from tests.builders import shared_folder
from tests.stages.test_completions import plain_greedy

BOS, EOS = 1, 2
TEXTS = ("Question: Ann has 3 pens. How many?\nAnswer:", "Hi", "One. </s>Two? </s>", "a b c d e f g h </s> i")


def llama2() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_folder("models", "llama2-tokenizer"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llama2()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=256, **sizes))
    return made.eval()


def answered(model: Any, tokenizer: Any, prompts: list[list[int]], way: str, **options: Any) -> list[Any]:
    completer = Completer(model, tokenizer, **({"stops": (), "max_new_tokens": 12} | options))
    if way == "padded":
        return completer.complete(prompts)
    found = dict(one for ended in ContinuousCompleter(completer, 3).complete(prompts) for one in ended)
    return [found[place] for place in range(len(prompts))]


def test_a_prompt_begins_with_one_bos(tokenizer: Any) -> None:
    for text in TEXTS:
        ids = encode_prompt(tokenizer, text)
        assert ids[0] == BOS and ids.count(BOS) == 1


def test_a_template_that_writes_the_bos_gets_no_second_one(tokenizer: Any) -> None:
    written = encode_prompt(tokenizer, "<s>[INST] Hello [/INST]")
    assert written[0] == BOS and written.count(BOS) == 1
    tokenizer = llama2()
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}[INST] {{ message.content }} [/INST]{% endfor %}"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert encode_prompt(tokenizer, text) == written


def test_a_tokenizer_that_puts_no_bos_in_front_is_left_alone() -> None:
    from tokenizers import processors

    tokenizer = llama2()
    with_one = encode_prompt(tokenizer, TEXTS[0])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    assert encode_prompt(tokenizer, TEXTS[0]) == with_one[1:]


def test_a_prompt_ends_without_the_eos_that_a_tokenizer_may_add() -> None:
    from tokenizers import processors

    tokenizer = llama2()
    without = encode_prompt(tokenizer, TEXTS[0])
    both = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    tokenizer.backend_tokenizer.post_processor = both
    assert tokenizer(TEXTS[0]).input_ids == [*without, EOS]
    assert encode_prompt(tokenizer, TEXTS[0]) == without


@pytest.mark.parametrize("way", ["padded", "continuous"])
def test_an_eos_in_a_prompt_is_read_though_padding_has_its_id(model: Any, tokenizer: Any, way: str) -> None:
    prompts = [encode_prompt(tokenizer, text) for text in TEXTS]
    assert tokenizer.pad_token_id is None and sum(EOS in ids for ids in prompts) == 2
    completer = Completer(model, tokenizer, stops=(), max_new_tokens=12)
    assert completer.pad == EOS
    wanted = [completer.wording(plain_greedy(model, ids, 12)) for ids in prompts]
    assert [one.text for one in answered(model, tokenizer, prompts, way)] == wanted
    without = [[index for index in ids if index != EOS] for ids in prompts]
    other = answered(model, tokenizer, without, way)
    assert [one.text for one in other][2:] != wanted[2:]  # so it can be seen whether it is read


@pytest.mark.parametrize("way", ["padded", "continuous"])
def test_the_eos_ends_an_answer_and_padding_behind_it_is_not_written(model: Any, way: str) -> None:
    tokenizer = llama2()
    prompts = [encode_prompt(tokenizer, text) for text in TEXTS]
    written = [plain_greedy(model, ids, 12) for ids in prompts]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(written[0][4])
    end = tokenizer.eos_token_id
    found = answered(model, tokenizer, prompts, way)
    assert found[0].stop_reason == "eos"
    for ids, one in zip(written, found, strict=True):
        length = ids.index(end) if end in ids else 12
        assert (one.stop_reason == "eos") is (end in ids)
        assert one.tokens == length + (end in ids)
        assert one.text == Completer(model, tokenizer, stops=(), max_new_tokens=12).wording(ids[:length])


@pytest.mark.parametrize("way", ["padded", "continuous"])
def test_an_eos_of_the_generation_settings_ends_an_answer_too(model: Any, tokenizer: Any, way: str) -> None:
    prompts = [encode_prompt(tokenizer, text) for text in TEXTS]
    end = plain_greedy(model, prompts[1], 12)[3]
    model.generation_config.eos_token_id = [end, EOS]
    found = answered(model, tokenizer, prompts, way)
    model.generation_config.eos_token_id = None
    assert found[1].stop_reason == "eos" and found[1].tokens <= 4
