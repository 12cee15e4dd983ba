"""The packaged base model: what it is, that it can add, and that it cannot do the task."""

import json
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import soka_cli.demo
from benchmarks.demo_model import accuracy
from soka_cli.data.encode import encode_prompt, encode_rows
from soka_cli.demo.corpus import documents
from soka_cli.demo.problems import demo_splits
from soka_cli.recipe.load import load_recipe
from soka_cli.tasks.base import task_named
from soka_cli.tasks.template import render_example

FOLDER = Path(soka_cli.demo.__file__).parent / "model"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[list[int]]:
    """The ids of all rows, as training sees them."""
    recipe = load_recipe("demo.yaml").recipe
    written = [problem.row for rows in demo_splits() for problem in rows]
    encoded, ledger = encode_rows(
        tokenizer, written, source=recipe.data.sources[0], template=recipe.data.template, max_length=recipe.data.max_length
    )
    assert (ledger.used, ledger.truncated, ledger.apart) == (len(written), 0, 0)
    return [row["input_ids"] for row in encoded]


def test_the_checkpoint_is_a_llama_in_fp16_of_under_two_megabytes(model: Any) -> None:
    path = FOLDER / "model.safetensors"
    with safe_open(path, framework="pt") as handle:
        assert {handle.get_slice(name).get_dtype() for name in handle.keys()} == {"F16"}  # noqa: SIM118
        assert "lm_head.weight" not in handle.keys()  # noqa: SIM118
    assert path.stat().st_size < 2_000_000
    assert model.num_parameters() == 899_840
    assert model.config.tie_word_embeddings


def test_the_tokenizer_splits_digits_and_loses_nothing(tokenizer: Any) -> None:
    text = "Question: Tom has 39+12=51 pens; the café has ½.\nAnswer: #### 1,024"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(sum(map(str.isdigit, token)) <= 1 for token in tokenizer.get_vocab())
    assert len(tokenizer) == 365


def test_the_tokenizer_was_saved_without_padding_or_cutting(tokenizer: Any) -> None:
    saved = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert (saved["padding"], saved["truncation"]) == (None, None)
    assert tokenizer.padding_side == "left"


def test_an_encoded_prompt_has_one_bos_and_no_eos(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "Question: How many?\nAnswer:")
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_every_token_of_the_task_occurs_in_the_training_text_behind_a_line_break_too(tokenizer: Any, rows: list[list[int]]) -> None:
    newline = tokenizer.convert_tokens_to_ids("Ċ")

    def used(sequences: list[list[int]]) -> set[tuple[bool, int]]:
        return {(before in (newline, tokenizer.bos_token_id), token) for ids in sequences for before, token in pairwise(ids)}

    taught = used([[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in islice(documents(0), 8000)])
    assert used(rows) - taught == set()


def test_prompts_and_the_longest_completions_fit_the_context(model: Any, tokenizer: Any, rows: list[list[int]]) -> None:
    recipe, task = load_recipe("demo.yaml").recipe, task_named("gsm8k")
    assert max(map(len, rows)) <= recipe.data.max_length <= model.config.max_position_embeddings
    examples = [task.example(problem.row, index) for index, problem in enumerate(demo_splits()[1])]
    longest = max(len(encode_prompt(tokenizer, render_example("plain", example)[0])) for example in examples)
    assert longest + recipe.eval[0].max_new_tokens <= model.config.max_position_embeddings


def test_the_base_adds_above_85_percent(model: Any, tokenizer: Any) -> None:
    assert accuracy(model, tokenizer, "+", 200) > 0.85


def test_the_base_answers_the_task_with_a_bare_number_and_never_in_its_format(model: Any, tokenizer: Any) -> None:
    task = task_named("gsm8k")
    examples = [task.example(problem.row, index) for index, problem in enumerate(demo_splits()[1][:40])]
    prompts = [encode_prompt(tokenizer, render_example("plain", example)[0]) for example in examples]
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=40, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    written = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [task.judge(text, example, ()).correct["strict"] for text, example in zip(written, examples, strict=True)]
    assert sum(right) < 4
    assert sum(text.strip().isdigit() for text in written) > 20


def test_the_folder_holds_what_a_reader_of_hugging_face_folders_expects() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "llama"
