"""Answers a second: 96 prompts of mixed length one by one by transformers' `generate`, and as soka eval asks them.

python -m benchmarks.evaluate [--model FOLDER --rows gsm8k/test.jsonl] [--tokens 128] [--batch-size 32] [--repeats 5]

The ways take turns, so that all meet the same load. Every way has to write the same words. The bar is three times the throughput of
one by one on 2 cores. Without --model it is the packaged demo's, with up to two solved problems in front of each question.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from soka_cli.data.encode import encode_prompt
from soka_cli.models.base import load_base, load_tokenizer
from soka_cli.recipe.places import locate
from soka_cli.recipe.schema import Batching, ModelSection
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.answerer import Decoding, Question
from soka_cli.stages.completions import Completer
from soka_cli.stages.local_answerer import LocalAnswerer

BAR = 3.0
DEMO = "soka:demo/model"
Texts = list[str]


def prompts_of(rows: Path | None) -> Texts:
    """Questions of different lengths."""
    path = rows or Path(str(locate("soka:demo/data/test.jsonl")))
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    solved = [f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in found]
    shots = (0,) if rows is not None else (0, 1, 2)
    asked = [f"Question: {row['question']}\nAnswer:" for row in found[2:]]
    return ["".join(solved[: shots[place % len(shots)]]) + text for place, text in enumerate(asked)]


def one_by_one(model: Any, tokenizer: Any, prompts: Texts, tokens: int) -> Texts:
    """What a script without soka does: a prompt, a call of `generate`."""
    completer = Completer(model, tokenizer, stops=(), max_new_tokens=tokens)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        with torch.inference_mode():
            written = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    do_sample=False, max_new_tokens=completer.room(ids[0].tolist()), eos_token_id=completer.ends, pad_token_id=completer.pad
                ),
            )
        texts.append(completer.wording(written[0, ids.shape[1] :].tolist()))
    return texts


def as_soka_asks(model: Any, tokenizer: Any, prompts: Texts, tokens: int, batching: Batching, batch_size: int) -> Texts:
    """soka's own way, encoding and the trial of continuous batching included; nothing is judged or written."""
    decoding = Decoding((), tokens)
    answerer = LocalAnswerer(model, tokenizer, decoding, batch_size=batch_size, batching=batching, reporter=SilentReporter())
    questions = [Question(str(place), 0, prompt) for place, prompt in enumerate(prompts)]
    texts = {question.id: completion.text for answers in answerer.answer(questions, ()) for question, completion in answers}
    return [texts[question.id] for question in questions]


def spread(values: list[float], digits: int = 1) -> str:
    """`median (least to most)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args(arguments)
    section = ModelSection(name=chosen.model, dtype="float32")
    model, tokenizer = load_base(section, offline=True), load_tokenizer(section, offline=True)
    tokens, size = chosen.tokens, chosen.batch_size
    completer = Completer(model, tokenizer, stops=(), max_new_tokens=tokens)
    prompts = [text for text in prompts_of(chosen.rows) if completer.room(encode_prompt(tokenizer, text))][: chosen.prompts]
    ways: dict[str, Callable[[], Texts]] = {
        "one by one": lambda: one_by_one(model, tokenizer, prompts, tokens),
        "padded": lambda: as_soka_asks(model, tokenizer, prompts, tokens, "padded", size),
        "continuous": lambda: as_soka_asks(model, tokenizer, prompts, tokens, "continuous", size),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    wanted = ways["one by one"]()  # a round that warms up
    for _ in range(chosen.repeats):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            texts = way()
            wall[name].append(time.perf_counter() - started[0])
            processor[name].append(time.process_time() - started[1])
            assert texts == wanted, f"{name} writes other words"
            print(f"{name}: {wall[name][-1]:.1f} s, {processor[name][-1]:.1f} s of processor time", file=sys.stderr, flush=True)
    lengths = sorted(len(encode_prompt(tokenizer, prompt)) for prompt in prompts)
    written = sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in wanted)
    print(
        f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, about {written} tokens written, at most {tokens} a prompt; "
        f"batches of {size}; {chosen.repeats} rounds, {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    print("| way | seconds | processor seconds | tokens/s | times one by one | by processor time |\n| --- | --- | --- | --- | --- | --- |")
    for name in ways:
        gains, less = ([first / one for first, one in zip(clock["one by one"], clock[name], strict=True)] for clock in (wall, processor))
        speed = f"{written / statistics.median(wall[name]):.0f}"
        figures = (spread(wall[name]), spread(processor[name]), speed, spread(gains, 2), spread(less, 2))
        print(f"| {name} | {' | '.join(figures)} |", flush=True)
    best = max(statistics.median(wall["one by one"]) / statistics.median(wall[name]) for name in ways)
    print(f"\nthe bar of {BAR:g} times one by one is {'met' if best >= BAR else 'missed'}: {best:.2f}")


if __name__ == "__main__":
    main()
