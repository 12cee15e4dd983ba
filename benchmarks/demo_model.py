"""Trains the demo's base model from nothing: `python -m benchmarks.demo_model`, 20-30 minutes on 2 cores.

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
OTHER_WEIGHT = 0.4  # of a token that the text before does not decide; the others weigh 1


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


@dataclass(frozen=True)
class Batch:
    """Whole documents laid end to end in rows: ids, places inside the document, loss weights, each [rows, POSITIONS]."""

    ids: torch.Tensor
    places: torch.Tensor
    weights: torch.Tensor


def weighted_documents(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Endless documents `<s> text </s>` as ids and the loss weight of each."""
    source = corpus.documents(seed)
    while True:
        texts = list(islice(source, 1000))
        for text, encoding in zip(texts, tokenizer.backend_tokenizer.encode_batch(texts), strict=True):
            by_character = np.full(len(text), OTHER_WEIGHT, dtype=np.float32)
            for span in corpus.decided(text):
                by_character[slice(*span)] = 1.0
            ends = [end - 1 for _, end in encoding.offsets[1:]]  # a token begins with the space before its word
            yield [*encoding.ids, tokenizer.eos_token_id], np.concatenate([[0.0], by_character[ends], [OTHER_WEIGHT]])


def batches(tokenizer: PreTrainedTokenizerFast, rows: int, seed: int) -> Iterator[Batch]:
    """Endless batches. No document is cut; what is left of a row is padding of weight 0."""
    ids = np.full((rows, POSITIONS), tokenizer.pad_token_id)
    places, weights = np.zeros_like(ids), np.zeros(ids.shape, dtype=np.float32)
    row, column = 0, 0
    for document, document_weights in weighted_documents(tokenizer, seed):
        if column + len(document) > POSITIONS:
            places[row, column:] = np.arange(POSITIONS - column)
            row, column = row + 1, 0
        if row == rows:
            yield Batch(torch.from_numpy(ids), torch.from_numpy(places), torch.from_numpy(weights))
            ids, places, weights = np.full_like(ids, tokenizer.pad_token_id), np.zeros_like(places), np.zeros_like(weights)
            row = 0
        span = slice(column, column + len(document))
        ids[row, span], weights[row, span], places[row, span] = document, document_weights, np.arange(len(document))
        column = span.stop


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
    for step, batch in enumerate(islice(batches(tokenizer, schedule.batch, seed), schedule.steps)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        # Without a mask, the model lets no token see beyond the place 0 of its own document.
        logits = model(input_ids=batch.ids, position_ids=batch.places, use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weight = batch.weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            decided = losses.detach()[weight == 1.0].mean().item()
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{schedule.steps} loss {loss.item():.4f} decided {decided:.4f} {seconds:.0f} s", flush=True)
        if step % 1000 == 999:
            save(model, tokenizer, folder)
            print(f"addition {accuracy(model, tokenizer, '+', 200):.1%}", flush=True)


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, operator: str, count: int, seed: int = 0) -> float:
    """Share of `count` facts of the demo's range whose result the model writes behind the equals sign."""
    generator = random.Random(seed)
    facts = [corpus.draw_fact(operator, generator) for _ in range(count)]
    prompts = [f"{left}{operator}{right}=" for left, right in facts]
    # Not tokenizer(prompts, padding=True): that leaves padding switched on in the tokenizer, for the training text too.
    inputs = tokenizer.pad({"input_ids": tokenizer(prompts).input_ids}, return_tensors="pt")
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
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps, each of 8 x 256 tokens")
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
