"""Whether two models answer alike: the same prompts through both, in fp32, logits compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

import soka_cli.adapter  # noqa: F401 - registers SoKA with PEFT
from soka_cli.data.encode import encode_prompt
from soka_cli.data.load import load_rows, load_source
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_base, load_folder, load_tokenizer
from soka_cli.models.offload import adapting
from soka_cli.stages.context import StageContext
from soka_cli.tasks.base import task_named
from soka_cli.tasks.protocol import protocol_named
from soka_cli.tasks.template import render_example

PROMPTS = 4
LONGEST = 256  # tokens of a prompt that are compared
ROUNDINGS = 8  # one rounding of every weight, grown through the layers; 0.1 to 0.7 on trained models of 4 and 5 layers
ARITHMETIC = 1e-4  # W x + (K - K0) x against (W + K - K0) x in fp32


@dataclass(frozen=True)
class Parity:
    """How far two models' logits lie apart, over `positions` tokens.

    `tolerance` is absolute: the share that `tolerated_share` gives, of the largest logit.
    """

    max_abs_logit_error: float
    top1_agreement: float
    tolerance: float
    positions: int


def tolerated_share(dtype: str) -> float:
    """Largest logit difference that is let pass, as a share of the largest logit: 8 machine epsilons of the stored type
    (0.0625 for bfloat16, 0.0078 for float16), at least 1e-4 (float32)."""
    return max([ARITHMETIC, *(ROUNDINGS * torch.finfo(getattr(torch, name)).eps for name in dtype.split(","))])


def compare(context: StageContext, merged: Path, dtype: str, device: str) -> Parity:
    """Base with adapter against the merged folder, one after the other, both in fp32.

    Raises:
        SokaError: exit 8, where the largest difference is above the tolerance.
    """
    section = context.recipe.model.model_copy(update={"dtype": "float32", "quantization": "none"})
    prompts = parity_prompts(context)
    with context.reporter.task("compare logits", total=2, unit="models") as task:
        base = load_base(section, device=device, offline=context.offline)
        with adapting(base):
            adapted = PeftModel.from_pretrained(base, str(context.layout.adapter)).eval()
        expected = logits(adapted, prompts, device)
        del base, adapted
        task.advance(1, model="adapter")
        whole = load_folder(merged, dtype="float32", device=device, trust=section.trust_remote_code, max_memory=section.max_memory)
        found = logits(whole, prompts, device)
        task.advance(1, model="merged")
    parity = judged(expected, found, tolerated_share(dtype))
    if not parity.max_abs_logit_error <= parity.tolerance:
        raise SokaError(
            "the merged model does not answer as base and adapter do",
            where=f"{parity.positions} positions of {len(prompts)} prompts",
            why=f"the logits differ by {parity.max_abs_logit_error:.3g}, {parity.tolerance:.3g} is tolerated for {dtype}; "
            f"the first choice agrees at {parity.top1_agreement:.1%}",
            hint="the adapter may belong to another base; train again (soka train --force), or merge with --check weights to look at it",
            exit_code=ExitCode.CHECK,
        )
    return parity


def judged(expected: Sequence[Tensor], found: Sequence[Tensor], share: float) -> Parity:
    """The figures of two models' logits, [tokens, vocabulary] a prompt."""
    error = max(float((one - other).abs().max()) for one, other in zip(expected, found, strict=True))
    agree = [one.argmax(-1) == other.argmax(-1) for one, other in zip(expected, found, strict=True)]
    same = torch.cat(agree)
    largest = max(float(one.abs().max()) for one in expected)
    return Parity(error, float(same.double().mean()), share * largest, len(same))


@torch.no_grad()
def logits(model: Any, prompts: Sequence[Sequence[int]], device: str) -> list[Tensor]:
    """fp32 logits on the CPU, [tokens, vocabulary] for each prompt, one prompt at a time so that padding plays no part."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=device)
        inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
        found.append(model(**inputs).logits[0].float().cpu())  # (tokens, vocabulary)
    return found


def parity_prompts(context: StageContext) -> list[list[int]]:
    """A few prompts of the recipe: of its first benchmark that can be had, else its training rows, else the first token ids."""
    try:
        tokenizer = load_tokenizer(context.recipe.model, offline=context.offline)
        texts = _prompt_texts(context)
        found = [encode_prompt(tokenizer, text)[:LONGEST] for text in texts]
    except SokaError as error:
        context.reporter.say(f"merge: compared on token ids 0 to 31 ({error.what})")
        found = []
    return [ids for ids in found if ids] or [list(range(32))]


def _prompt_texts(context: StageContext) -> list[str]:
    recipe = context.recipe
    for entry in recipe.eval:
        try:
            task, protocol = task_named(entry.task), protocol_named(entry.protocol, entry.task)
            rows = load_rows(
                entry.path,
                revision=entry.revision,
                config=entry.config,
                split=entry.split,
                rows=PROMPTS,
                task=entry.task,
                offline=context.offline,
            )
        except SokaError:
            continue  # data that cannot be had here
        return [protocol.render(task.example(row, index))[0] for index, row in enumerate(rows)]
    source = recipe.data.sources[0]
    found = load_source(source.model_copy(update={"rows": PROMPTS}), offline=context.offline)
    if source.task is None:
        return [str(row.get(str(source.messages or source.prompt), "")) for row in found.rows]
    task = task_named(source.task)
    return [render_example("plain", task.example(row, index))[0] for index, row in enumerate(found.rows)]
