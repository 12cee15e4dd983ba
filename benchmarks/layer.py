"""One adapted layer beside LoRA and LoKr, the planner's choice beside the best plan, and how the time grows; one CPU thread.

python -m benchmarks.layer [--repeats 7] [--parts layers choices answers growth] [--plot FILE.svg]

All ways of a table take turns; a figure is the median of CPU seconds of the one thread, a ratio the median (and the middle half) of the
repetitions' ratios. In the table of layers a step is `accumulation` times forward and backward, then a change of the parameters; folded
is factored with theta0 in the base weight.
"""

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

from soka_cli.cli.app import LIBRARY_SETTINGS

os.environ.update(LIBRARY_SETTINGS)  # as `soka` starts

import torch
from torch import Tensor, nn

from benchmarks.adapted import config, layer, trained
from benchmarks.stopwatch import interleaved
from soka_cli.adapter.fold import fold_start
from soka_cli.adapter.products import keep_matrices
from soka_cli.kron import PLANS, Work, balanced, choose_plan
from soka_cli.kron.plan import seconds

LAYERS = [(1024, 1024, 1024, 1), (2816, 1024, 1024, 1), (4096, 4096, 512, 4), (4096, 4096, 2048, 4)]  # out, in, tokens, accumulation
WIDTHS, RANKS, TOKENS = (256, 1024, 4096), (1, 2, 4, 8, 16, 32), (1, 64, 1024)
ROOM = 1 << 34


def soka(outputs: int, inputs: int, rank: int, product: str = "auto") -> nn.Module:
    made = layer(outputs, inputs, config("soka", ["0"], rank, product))
    keep_matrices(made, ROOM)
    return made


def step(model: nn.Module, x: Tensor, gradient: Tensor, accumulation: int = 1) -> Callable[[], None]:
    parameters = trained(model)

    def taken() -> None:
        for _ in range(accumulation):
            model(x).backward(gradient)
        with torch.no_grad():
            for parameter in parameters:
                parameter *= 1.0001

    return taken


def batch(outputs: int, inputs: int, tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, tokens, inputs, requires_grad=True), torch.randn(1, tokens, outputs)


def layers(repeats: int, ranks: tuple[int, ...], count: int) -> None:
    names = ("base", "LoRA", "LoKr", "soka", "factored", "folded", "merged", "dense")
    print("\n| layer, tokens, accumulation | r | LoRA ms | " + " | ".join(f"{name} / LoRA" for name in names if name != "LoRA") + " |")
    print("| --- " * (len(names) + 2) + "|")
    for outputs, inputs, tokens, accumulation in LAYERS[:count]:
        for rank in ranks:
            shape = (outputs, inputs)
            models = {"base": layer(*shape, None), "LoRA": layer(*shape, config("lora", ["0"], rank))}
            models |= {"LoKr": layer(*shape, config("lokr", ["0"], rank))} if outputs < 4096 else {}
            models |= {"soka": soka(*shape, rank), **{plan: soka(*shape, rank, plan) for plan in PLANS}}
            models["folded"] = soka(*shape, rank, "factored")
            fold_start(models["folded"])
            x, gradient = batch(outputs, inputs, tokens)
            times = interleaved({name: step(model, x, gradient, accumulation) for name, model in models.items()}, repeats)
            ratios = [times[name].spread(times["LoRA"]) if name in times else "-" for name in names if name != "LoRA"]
            print(
                f"| {outputs}x{inputs}, {tokens}, {accumulation} | {rank} | {1e3 * times['LoRA'].median:.1f} | " + " | ".join(ratios) + " |"
            )


def choices(repeats: int) -> None:
    print("\n| d | r | tokens | " + " | ".join(f"{plan} ms" for plan in PLANS) + " | chosen | over the best |\n" + "| --- " * 8 + "|")
    worst = 0.0
    for width in WIDTHS:
        for rank in RANKS:
            models = {plan: layer(width, width, config("soka", ["0"], rank, plan)) for plan in PLANS}
            for tokens in TOKENS:
                x, gradient = batch(width, width, tokens)
                count = repeats if width * tokens < 1 << 22 else 3
                steps = max(1, (1 << 16) // (width * tokens))  # so that a figure is some milliseconds at least
                times = interleaved({name: step(model, x, gradient, steps) for name, model in models.items()}, count)
                chosen = choose_plan(Work((rank, *astuple(balanced(width, width))), vectors=tokens, inside=True))
                over = max(1.0, max(times[chosen].over(times[plan]) for plan in PLANS))
                worst = max(worst, over)
                figures = " | ".join(f"{1e3 * times[plan].median / steps:.2f}" for plan in PLANS)
                print(f"| {width} | {rank} | {tokens} | {figures} | {chosen} | {over:.2f} |", flush=True)
    print(f"\nWorst choice: {worst:.2f} times the best plan.")


def answers(repeats: int) -> None:
    """One token after the other: 20 of them make one figure."""
    print("\n| d | r | base us | LoRA us | soka beside / LoRA | soka merged / LoRA |\n" + "| --- " * 6 + "|")
    for width in WIDTHS:
        for rank in (2, 8):
            merged = layer(width, width, config("soka", ["0"], rank))
            models = {"base": layer(width, width, None), "LoRA": layer(width, width, config("lora", ["0"], rank))}
            models |= {"beside": layer(width, width, config("soka", ["0"], rank)), "merged": merged.merge_and_unload()}
            x = torch.randn(1, 1, width)

            def told(model: nn.Module, x: Tensor = x) -> Callable[[], None]:
                def twenty() -> None:
                    with torch.no_grad():
                        for _ in range(20):
                            model(x)

                return twenty

            times = interleaved({name: told(model.eval()) for name, model in models.items()}, 3 * repeats)
            ratios = " | ".join(times[name].spread(times["LoRA"]) for name in ("beside", "merged"))
            print(
                f"| {width} | {rank} | {1e6 * times['base'].median / 20:.0f} | {1e6 * times['LoRA'].median / 20:.0f} | {ratios} |",
                flush=True,
            )


def growth(repeats: int, path: Path) -> None:
    """Time of the adapter alone over r, d and tokens, measured and as the planner predicts it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    sides = {
        "terms (d = 1024, 1,024 tokens)": [(1024, rank, 1024) for rank in RANKS],
        "d (r = 2, 1,024 tokens)": [(width, 2, 1024) for width in (256, 576, 1024, 2304)],
        "tokens (d = 1024, r = 2)": [(1024, 2, tokens) for tokens in (16, 64, 256, 1024, 2048)],
    }
    figure, axes = pyplot.subplots(1, len(sides), figsize=(13, 4))
    for axis, (title, points) in zip(axes, sides.items(), strict=True):
        values = [point[1] if title[0] == "t" and title[1] == "e" else point[0] if title[0] == "d" else point[2] for point in points]
        measured: dict[str, list[float]] = {plan: [] for plan in (*PLANS, "base")}
        predicted: dict[str, list[float]] = {plan: [] for plan in PLANS}
        for width, rank, tokens in points:
            models = {plan: layer(width, width, config("soka", ["0"], rank, plan)) for plan in PLANS} | {"base": layer(width, width, None)}
            x, gradient = batch(width, width, tokens)
            times = interleaved({name: step(model, x, gradient) for name, model in models.items()}, repeats)
            work = Work((rank, *astuple(balanced(width, width))), vectors=tokens, inside=True)
            for name, spent in times.items():
                measured[name].append(1e3 * spent.median)
            for plan in PLANS:
                predicted[plan].append(1e3 * (times["base"].median + seconds(plan, work)))
        for number, plan in enumerate(PLANS):
            axis.loglog(values, measured[plan], "o-", color=f"C{number}", label=plan)
            axis.loglog(values, predicted[plan], "--", color=f"C{number}")
        axis.loglog(values, measured["base"], "k:", label="base layer")
        axis.set_xlabel(title)
        axis.set_ylabel("step, ms")
    axes[0].legend(title="lines measured, dashes predicted", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"\n{path.name} is written.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="how many, from the smallest on")
    parser.add_argument("--parts", nargs="+", default=["layers", "choices", "answers", "growth"])
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "layer-growth.svg")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, fp32, n = {options.repeats}, CPU seconds of the thread")
    if "layers" in options.parts:
        layers(options.repeats, tuple(options.ranks), options.layers)
    if "choices" in options.parts:
        choices(options.repeats)
    if "answers" in options.parts:
        answers(options.repeats)
    if "growth" in options.parts:
        growth(options.repeats, options.plot)


if __name__ == "__main__":
    main()
