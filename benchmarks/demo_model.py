"""Trains the demo's base model from nothing: `python -m benchmarks.demo_model`, about 20 minutes on 2 free cores.

Writes the model and its tokenizer to soka_cli/demo/model/ and the task's rows to soka_cli/demo/data/.
The text comes from soka_cli/demo/corpus.py; the same seed and thread count give the same model.
"""

import argparse
import copy
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import soka_cli.demo
from soka_cli.demo import corpus, problems
from soka_cli.demo.arithmetic import result

DEMO = Path(soka_cli.demo.__file__).parent
VOCABULARY = 365
POSITIONS = 256
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
OTHER_WEIGHT = 0.4  # of a token that no arithmetic decides; results weigh 1


@dataclass(frozen=True)
class Schedule:
    """How long and how fast the model learns."""

    steps: int
    batch: int = 8
    peak_rate: float = 2.5e-3
    warmup: int = 100

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 2% of the peak."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits, trained on the corpus and on nothing else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(corpus.documents(seed), 20_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def weighted_tokens(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless pairs of token ids and loss weights, about a thousand documents each: `<s> document </s>`."""
    source = corpus.documents(seed)
    while True:
        ids, weights = [], []
        texts = list(islice(source, 1000))
        for text, encoding in zip(texts, tokenizer.backend_tokenizer.encode_batch(texts), strict=True):
            by_character = np.full(len(text), OTHER_WEIGHT, dtype=np.float32)
            for match in corpus.RESULT.finditer(text):
                by_character[slice(*match.span())] = 1.0
            starts = [start for start, _ in encoding.offsets[1:]]
            ids.append(np.array([*encoding.ids, tokenizer.eos_token_id]))
            weights.append(np.concatenate([[0.0], by_character[starts], [OTHER_WEIGHT]]).astype(np.float32))
        yield np.concatenate(ids), np.concatenate(weights)


def batches(tokenizer: PreTrainedTokenizerFast, rows: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ids [rows, POSITIONS] and weights of the same shape, cut from the stream without gaps."""
    size = rows * POSITIONS
    ids, weights = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    for more_ids, more_weights in weighted_tokens(tokenizer, seed):
        ids, weights = np.concatenate([ids, more_ids]), np.concatenate([weights, more_weights])
        while len(ids) >= size:
            yield torch.from_numpy(ids[:size].reshape(rows, -1)), torch.from_numpy(weights[:size].reshape(rows, -1))
            ids, weights = ids[size:], weights[size:]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained Llama of about 0.9M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The model in fp16 and its tokenizer, as a Hugging Face folder that others may read."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, seed: int, folder: Path) -> None:
    """AdamW over fresh text; a step's loss is the weighted mean over its tokens. Saves every 1,000 steps."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)
    started = time.perf_counter()
    for step, (ids, weights) in enumerate(islice(batches(tokenizer, schedule.batch, seed), schedule.steps)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            on_results = losses.detach()[weight == 1.0].mean().item()
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{schedule.steps} loss {loss.item():.4f} results {on_results:.4f} {seconds:.0f} s", flush=True)
        if step % 1000 == 999:
            save(model, tokenizer, folder)
            print(f"addition {accuracy(model, tokenizer, '+', 200):.1%}", flush=True)


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, operator: str, count: int, seed: int = 0) -> float:
    """Share of `count` facts of the demo's range whose result the model writes behind the equals sign."""
    generator = random.Random(seed)
    facts = [corpus.draw_fact(operator, generator) for _ in range(count)]
    prompts = [f"{left}{operator}{right}=" for left, right in facts]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [text.split("\n")[0] == str(result(first, operator, second)) for text, (first, second) in zip(written, facts, strict=True)]
    return sum(right) / count


def write_data(folder: Path) -> None:
    """The task's training and test rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), problems.demo_splits(), strict=True):
        problems.write_rows(folder / f"{name}.jsonl", rows)


def main() -> None:
    """Trains, saves in fp16, reads back what was saved and measures that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7000, help="optimizer steps, each of 8 x 256 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DEMO, help="folder that gets model/ and data/")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    write_data(options.out / "data")
    tokenizer = train_tokenizer(options.seed)
    model = new_model(tokenizer)
    print(f"{len(tokenizer)} entries, {model.num_parameters():,} parameters", flush=True)
    train(model, tokenizer, Schedule(options.steps), options.seed + 1, options.out / "model")
    save(model, tokenizer, options.out / "model")

    saved = AutoModelForCausalLM.from_pretrained(options.out / "model", dtype=torch.float32)
    reread = AutoTokenizer.from_pretrained(options.out / "model")
    for operator in "+-*/":
        print(f"accuracy {operator} {accuracy(saved, reread, operator, 500):.1%}")


if __name__ == "__main__":
    main()
