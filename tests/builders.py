"""Small things that tests are made of: models, a tokenizer, rows, a recipe. Nothing here asks the network."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
VOCABULARY = 260  # 256 bytes and four special tokens


def shared_folder(*parts: str) -> Path:
    """A folder or file of real data under $SOKA_SHARED (default: `shared` beside the repository); skips where it is absent."""
    root = Path(os.environ.get("SOKA_SHARED") or REPOSITORY.parent / "shared")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts) or 'shared data'} here; set SOKA_SHARED to the folder of models and data")
    return path


def byte_tokenizer(*, pad: bool = False, chat: bool = False) -> Any:
    """A tokenizer of single bytes: <unk> 0, <s> 1, </s> 2, <pad> 3, then the bytes; a BOS in front, as Llama's has.

    `pad=False` leaves the pad token out, as Llama 2 does; `chat` adds a chat template that writes the BOS itself.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    named = {"pad_token": "<pad>"} if pad else {}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **named)
    if chat:
        wrapped.chat_template = (
            "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
    return wrapped


def _causal_config(kind: str) -> Any:
    from transformers import GPT2Config, HrmTextConfig, LlamaConfig, OPTConfig, Phi3Config, Qwen2Config

    ids = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "llama":
        return LlamaConfig(**ids, **small, max_position_embeddings=512, tie_word_embeddings=False)
    if kind == "qwen2":
        return Qwen2Config(**ids, **small, max_position_embeddings=512)
    if kind == "gpt2":
        return GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    if kind == "opt":
        return OPTConfig(
            **(ids | {"pad_token_id": 0}),
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=512,
        )
    if kind == "phi3":  # qkv_proj and gate_up_proj are modules of their own
        return Phi3Config(**(ids | {"pad_token_id": 0}), **small, max_position_embeddings=512)
    if kind == "hrm_text":  # the files hold q, k, v and gate in one tensor, the model apart
        single = small | {"num_hidden_layers": 1, "num_key_value_heads": 4, "head_dim": 8}
        return HrmTextConfig(**(ids | {"pad_token_id": 0}), **single, H_cycles=1, L_cycles=1, L_bp_cycles=[1])
    raise ValueError(f"no tiny model called {kind}")


def tiny_model(kind: str = "llama", *, seed: int = 0) -> Any:
    """An untrained causal language model of two layers, width 32, in fp32 and evaluation mode: llama, qwen2, gpt2, opt, phi3, hrm_text."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(_causal_config(kind), dtype=torch.float32).eval()


def tiny_model_folder(folder: Path, kind: str = "llama", *, seed: int = 0, pad: bool = False, chat: bool = False) -> Path:
    """The model above and its tokenizer as a folder that `from_pretrained` reads."""
    tiny_model(kind, seed=seed).save_pretrained(folder)
    byte_tokenizer(pad=pad, chat=chat).save_pretrained(folder)
    return folder


def gsm8k_rows(count: int = 24) -> list[dict[str, str]]:
    """Rows in GSM8K's form; different numbers in each."""
    rows = []
    for index in range(count):
        first, second = 3 + index, 2 + index % 7
        total = first + second
        rows.append(
            {
                "question": f"Ann has {first} pens and buys {second} more. How many pens has she?",
                "answer": f"She has {first}+{second}=<<{first}+{second}={total}>>{total} pens.\n#### {total}",
            }
        )
    return rows


def mbpp_rows(count: int = 4) -> list[dict[str, Any]]:
    """Rows in full MBPP's form, ids from 11 (its test split) on; each adds another number, and its reference has Windows line ends."""
    return [
        {
            "task_id": 11 + index,
            "text": f"Write a function to add {index} to a number.",
            "code": f"def add_{index}(x):\r\n    return x + {index}",
            "test_setup_code": "",
            "test_list": [f"assert add_{index}({x}) == {x + index}" for x in (0, 1, 5)],
            "challenge_test_list": [],
        }
        for index in range(count)
    ]


def humaneval_rows(count: int = 2) -> list[dict[str, str]]:
    """Rows in HumanEval's form."""
    return [
        {
            "task_id": f"HumanEval/{index}",
            "prompt": f'from typing import List\n\n\ndef plus_{index}(xs: List[int]) -> List[int]:\n    """ Add {index} to each. """\n',
            "entry_point": f"plus_{index}",
            "canonical_solution": f"    return [x + {index} for x in xs]\n",
            "test": f"\n\ndef check(candidate):\n    assert candidate([]) == []\n    assert candidate([1]) == [{1 + index}]\n\n",
        }
        for index in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gsm8k_file(folder: Path, count: int = 24, name: str = "train.jsonl") -> Path:
    """The rows above as a file of JSON lines."""
    return write_jsonl(folder / name, gsm8k_rows(count))


def recipe_mapping(model: Path | str, data: Path | str, /, **sections: Any) -> dict[str, Any]:
    """A recipe that trains for four steps in a second; `sections` are merged over its own, key by key.

    `recipe_mapping(model, data, train={"steps": 2}, adapter={"method": "lora", ...})`
    """
    mapping: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32"},
        "adapter": {"method": "soka", "target_modules": ["q_proj", "v_proj"], "rank": {"rule": "fixed", "value": 2}},
        "data": {"train": {"path": str(data), "task": "gsm8k"}, "template": "plain", "max_length": 256},
        "train": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "precision": "fp32", "save_every": 2},
    }
    for name, section in sections.items():
        mapping[name] = mapping[name] | section if isinstance(section, dict) and isinstance(mapping.get(name), dict) else section
    return mapping


def write_recipe(path: Path, mapping: dict[str, Any]) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    return path


def stage_context(folder: Path, mapping: dict[str, Any], *, run: str = "run", **options: Any) -> Any:
    """A StageContext on the CPU for a recipe written to `folder`, its run directory `folder/run`; `options` are the context's own."""
    from soka_cli.recipe.load import load_recipe
    from soka_cli.run.layout import RunLayout
    from soka_cli.stages.context import StageContext

    loaded = load_recipe(write_recipe(folder / f"{run}.yaml", mapping))
    return StageContext(loaded, RunLayout(folder / run), **({"device": "cpu"} | options))
