"""theta0 in the base weights: what it costs in digits (the start beside the base, and how much of a small step of theta bf16 sees), and
what a layer's step takes, of the factored plan's; one CPU thread.

python -m benchmarks.folded_start [MODEL_FOLDER] [--rank 8] [--repeats 7]

Times as in `benchmarks.layer`. Distances are relative norms. A step is noise of that size relative to each factor; what is seen of it is
the update that the factors make once they are rounded to the type of the products, against the exact one; the median over the layers.
"""

import argparse
import os
import statistics
from collections.abc import Callable

from soka_cli.cli.app import LIBRARY_SETTINGS

os.environ.update(LIBRARY_SETTINGS)  # as `soka` starts

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.adapted import config, layer
from benchmarks.layer import LAYERS, batch, step
from benchmarks.stopwatch import interleaved
from soka_cli.adapter import SokaConfig, SokaLayer
from soka_cli.adapter.fold import fold_start
from soka_cli.kron import KronFactors, kron_dense, kron_difference
from soka_cli.models.base import load_base
from soka_cli.recipe.schema import ModelSection

STEPS = (1e-4, 1e-3, 1e-2, 1e-1)
TYPES = (torch.float32, torch.bfloat16)


def adapted(name: str, rank: int, dtype: torch.dtype) -> PeftModel:
    base = load_base(ModelSection(name=name, dtype="float32"), device="cpu", offline=True).eval()
    return get_peft_model(base.to(dtype), SokaConfig(target_modules="all-linear", rank={"rule": "fixed", "value": rank}))


@torch.no_grad()
def logits(model: PeftModel) -> Tensor:
    torch.manual_seed(0)
    return model(input_ids=torch.randint(4, model.config.vocab_size, (8, 64))).logits.float()


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def starts(name: str, rank: int) -> None:
    print(
        "\n| type | folded start from the base's logits | base's logits from those of fp32 | weights moved by rounding |\n"
        + "| --- " * 4
        + "|"
    )
    exact: Tensor | None = None
    for dtype in TYPES:
        model = adapted(name, rank, dtype)
        base = logits(model)
        exact = base if exact is None else exact
        folding = fold_start(model)
        print(f"| {str(dtype).removeprefix('torch.')} | {off(logits(model), base):.1e} | {off(base, exact):.1e} | {folding.rounding:.1e} |")


@torch.no_grad()
def steps(name: str, rank: int) -> None:
    print("\n| step of theta | error of the update in bf16, folded | apart |\n| --- | --- | --- |")
    layers = [one for one in adapted(name, rank, torch.float32).modules() if isinstance(one, SokaLayer)]
    for size in STEPS:
        errors = [seen(layer.start_factors("default"), size) for layer in layers]
        print(f"| {size:g} | {statistics.median(one for one, _ in errors):.1%} | {statistics.median(other for _, other in errors):.1%} |")


def seen(start: KronFactors, size: float) -> tuple[float, float]:
    """The update's error with theta0 in the weight, and beside it."""
    now = KronFactors(*(moved(part, size) for part in (start.left, start.right, start.sigma)))
    exact = kron_dense(now.left, now.right, now.sigma) - kron_dense(start.left, start.right, start.sigma)
    folded = in_bf16(now) - in_bf16(start)
    apart = sum(in_bf16(KronFactors(*terms)) for terms in kron_difference(now, start))
    return off(folded, exact), off(apart, exact)


def moved(part: Tensor, size: float) -> Tensor:
    return part + size * part.norm() / part.numel() ** 0.5 * torch.randn_like(part)


def in_bf16(terms: KronFactors) -> Tensor:
    """sigma U (x) V of rounded sigma U and V, summed in fp32."""
    left = (terms.sigma[:, None, None] * terms.left).bfloat16().float()
    return kron_dense(left, terms.right.bfloat16().float(), torch.ones_like(terms.sigma))


def times(repeats: int) -> None:
    """Forward, backward and a change of the parameters; over bf16 weights under autocast, as `train.precision: bf16` trains."""
    print("\n| layer, tokens | r | type | factored ms | folded / factored |\n" + "| --- " * 5 + "|")
    for outputs, inputs, tokens, _ in LAYERS[:2]:
        for rank in (2, 8):
            for dtype in TYPES:
                models = {name: layer(outputs, inputs, config("soka", ["0"], rank, "factored")) for name in ("factored", "folded")}
                for model in models.values():
                    next(one for one in model.modules() if isinstance(one, SokaLayer)).get_base_layer().to(dtype)
                fold_start(models["folded"])
                ways = {name: typed_step(model, outputs, inputs, tokens, dtype) for name, model in models.items()}
                taken = interleaved(ways, repeats)
                ratio = taken["folded"].spread(taken["factored"])
                kind = str(dtype).removeprefix("torch.")
                print(f"| {outputs}x{inputs}, {tokens} | {rank} | {kind} | {1e3 * taken['factored'].median:.1f} | {ratio} |", flush=True)


def typed_step(model: nn.Module, outputs: int, inputs: int, tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    x, gradient = (one.detach().to(dtype) for one in batch(outputs, inputs, tokens))
    taken = step(model, x.requires_grad_(), gradient)

    def in_its_type() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            taken()

    return in_its_type


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="soka:demo/model")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    starts(options.model, options.rank)
    steps(options.model, options.rank)
    times(options.repeats)


if __name__ == "__main__":
    main()
