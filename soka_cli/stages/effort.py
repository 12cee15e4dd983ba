"""What a run takes beside memory: floating-point operations, time, disk, and the tokens that its evaluation writes.

A multiply-add is two operations. P is the weights that every token is multiplied by (the token table, which is looked up, left
out unless it is the output layer as well), L the blocks, d the width of all query heads together, S the tokens of a row.
"""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from soka_cli.kron.plan import Work, choose_plan, multiply_adds
from soka_cli.recipe.places import locate
from soka_cli.recipe.schema import EvalSection, Recipe
from soka_cli.stages.dimensions import Dimensions
from soka_cli.stages.memory import BYTES, FP32, optimizer
from soka_cli.stages.sizes import AdapterSizes, Terms
from soka_cli.tasks.splits import SPLITS

JUDGED = 3  # base, adapter, merged
LAST_STEPS = 100  # of metrics.jsonl, whose median speed counts as measured
SIZES = {
    "openai/gsm8k": 1319,
    "DigitalLearningGmbH/MATH-lighteval": 5000,
    "google-research-datasets/mbpp": 500,
    "openai/openai_humaneval": 164,
}
"""Items in the test split of benchmarks on the Hub, for a plan without a network."""


def operations_a_token(recipe: Recipe, base: Dimensions, sizes: AdapterSizes) -> int:
    """Forward 2 P + 2 L d S (attention sees half of S x S); backward as much again for the inputs, attention twice; 2 P more where every
    weight learns; and the adapter's products. With activation checkpointing every block goes forward once more."""
    attention = 2 * base.layers * base.attention * recipe.data.max_length
    passes = 6 if recipe.adapter.method == "full" else 4
    adapted, forward = (sum(adapter_operations(terms, recipe, trained=trained) for terms in sizes.terms) for trained in (True, False))
    again = 2 * base.linear + attention + forward if recipe.train.activation_checkpointing else 0
    return passes * base.multiplied + 3 * attention + adapted + again


def adapter_operations(terms: Terms, recipe: Recipe, *, trained: bool) -> int:
    """A token's operations in one adapted module, forward and (if trained) backward: LoRA 2 r (in + out) and twice that; SoKA by the plan
    that is chosen on a CPU, see docs/speed.md."""
    module, shape, rank = terms.module, terms.shape, terms.rank
    if shape is None:
        return (3 if trained else 1) * 2 * rank * (module.in_features + module.out_features)
    tokens = recipe.train.micro_batch_size * recipe.data.max_length
    inside = recipe.train.precision == "fp32" and recipe.model.quantization == "none"
    dtype = torch.float32 if recipe.train.precision == "fp32" else torch.bfloat16
    sizes, folded = (rank, shape.m, shape.n, shape.p, shape.q), recipe.adapter.fold_start
    work = Work(sizes, vectors=tokens, inside=inside, folded=folded, dtype=dtype)
    asked = recipe.adapter.product
    plan = choose_plan(work) if asked == "auto" else asked
    return 2 * multiply_adds(plan, replace(work, trained=trained)) // tokens


def measured_speed(metrics: Path) -> float | None:
    """Tokens a second of a run that has trained: the median of its last steps; None where none is written."""
    try:
        lines = metrics.read_text(encoding="utf8").splitlines()[-LAST_STEPS:]
        rows = [json.loads(line) for line in lines]
        speeds = [float(row["tokens_per_s"]) for row in rows if row.get("tokens_per_s")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return statistics.median(speeds) if speeds else None


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves, and of checkpoints the most that lie there at once.

    `checkpoint` is one: trained and kept values (4 a value), AdamW's moments as the optimizer holds them. There are `keep_checkpoints`,
    with `keep: best` the best one, and one being written.
    """

    decompose: int
    checkpoint: int
    checkpoints: int
    adapter: int
    merged: int

    @property
    def total(self) -> int:
        return self.decompose + self.checkpoints + self.adapter + self.merged

    @property
    def training(self) -> int:
        """What `soka train` writes."""
        return self.checkpoints + self.adapter


def disk(recipe: Recipe, base: Dimensions, sizes: AdapterSizes) -> Disk:
    """From the largest ranks that a rule may choose; the model that is trained whole, or merged, is in the base's type."""
    full = recipe.adapter.method == "full"
    trained, kept = (base.parameters, 0) if full else (sizes.trained, sizes.kept)
    return room_of(recipe, trained=trained, kept=kept, model=base.parameters, held=optimizer(recipe, base, sizes))


def room_of(recipe: Recipe, *, trained: int, kept: int, model: int, held: int) -> Disk:
    """From counts: trained parameters, values kept beside them, parameters of the base, and bytes of AdamW's moments."""
    full = recipe.adapter.method == "full"
    weights = model * BYTES[recipe.model.dtype]
    checkpoint = FP32 * (trained + kept) + held
    most = recipe.train.keep_checkpoints + (2 if recipe.train.keep == "best" else 1)
    return Disk(
        decompose=FP32 * trained if recipe.adapter.method == "soka" else 0,
        checkpoint=checkpoint,
        checkpoints=checkpoint * most,
        adapter=weights if full else FP32 * (trained + kept),
        merged=0 if full else weights,
    )


def evaluation(entry: EvalSection, base: Dimensions, width: int) -> dict[str, Any]:
    """One benchmark: items (null where the data is not at hand and its size not known), the most tokens that one model writes, the
    operations of writing them, and bytes of keys and values of one batch's new tokens."""
    from soka_cli.tasks.protocol import protocol_named

    longest = entry.max_new_tokens or protocol_named(entry.protocol, entry.task).max_new_tokens
    items = items_of(entry)
    tokens = None if items is None else items * longest
    return {
        "name": entry.folder,
        "items": items,
        "max_new_tokens": longest,
        "tokens_at_most": tokens,
        "models": JUDGED,
        "operations_at_most": None if tokens is None else JUDGED * 2 * base.multiplied * tokens,
        "cache_bytes": 2 * base.layers * base.key_value * width * entry.batch_size * longest,
    }


def items_of(entry: EvalSection) -> int | None:
    place = locate(entry.path)
    if not isinstance(place, Path):
        found = SIZES.get(entry.path) if entry.split == "test" else None
    elif place.suffix == ".jsonl" and entry.task not in SPLITS:
        with place.open("rb") as file:
            found = sum(1 for line in file if line.strip())
    else:
        found = None  # the task picks its split by the rows' ids
    return found if entry.limit is None else entry.limit if found is None else min(found, entry.limit)
