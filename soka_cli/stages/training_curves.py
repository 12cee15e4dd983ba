"""The report's curves of a training: loss, gradient norm, learning rate and throughput, each over steps and over tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from soka_cli.recipe.schema import Recipe
from soka_cli.stages.findings import Step, held_out_curve
from soka_cli.stages.plots import Plot, curve
from soka_cli.stages.symptoms import NORM

RARELY = 1.5  # the paper: SoKA's gradient norm is rarely above it


@dataclass(frozen=True)
class Quantity:
    """What is drawn: points over steps, a line for each series; `words` say what the reader sees, `levels` are lines to compare with."""

    name: str
    title: str
    series: dict[str, list[tuple[float, float]]]
    words: str
    levels: dict[str, float]


def training_curves(recipe: Recipe, steps: Sequence[Step]) -> list[Plot]:
    """Over steps, then over tokens where every logged step counted them."""
    if not steps:
        return []
    found = list(quantities(recipe, steps))
    first, last = steps[0], steps[-1]
    plots = [over(one, "", f"steps {first.step} to {last.step}", "optimizer step") for one in found]
    if any(step.tokens is None for step in steps):
        return plots
    tokens = {0: 0} | {step.step: step.tokens for step in steps if step.tokens is not None}
    read = [
        Quantity(
            one.name,
            one.title,
            {label: [(tokens[int(x)], y) for x, y in points] for label, points in one.series.items()},
            one.words,
            one.levels,
        )
        for one in found
    ]
    return plots + [over(one, "-tokens", f"{first.tokens:,} to {last.tokens:,} tokens", "tokens read") for one in read]


def over(quantity: Quantity, ending: str, span: str, across: str) -> Plot:
    title = f"{quantity.title}, over tokens" if ending else quantity.title
    alt = f"{quantity.title.partition(',')[0]} over {span}: {quantity.words}."
    return curve(f"{quantity.name}{ending}", title, quantity.series, alt=alt, levels=quantity.levels, across=across)


def quantities(recipe: Recipe, steps: Sequence[Step]) -> Iterator[Quantity]:
    first, last, evaluated = steps[0], steps[-1], held_out_curve(steps)
    losses = {"loss": [(float(step.step), step.loss) for step in steps]}
    held_out = f"; on held-out rows {evaluated[0][1]:.4g} first and {evaluated[-1][1]:.4g} last" if evaluated else ""
    if evaluated:
        losses["eval_loss"] = [(float(step), loss) for step, loss in evaluated]
    yield Quantity("loss", "Loss, nats a token", losses, f"{first.loss:.4g} first, {last.loss:.4g} last{held_out}", {})
    if norms := [(float(step.step), step.grad_norm) for step in steps if step.grad_norm is not None]:
        yield gradient_norm(recipe, norms)
    rates = [(float(step.step), step.lr) for step in steps]
    yield Quantity("lr", "Learning rate", {"lr": rates}, f"at most {max(rate for _, rate in rates):.3g}", {})
    if speeds := [(float(step.step), step.tokens_per_s) for step in steps if step.tokens_per_s is not None]:
        values = [speed for _, speed in speeds]
        words = f"{min(values):,.0f} to {max(values):,.0f} tokens a second"
        yield Quantity("throughput", "Throughput, tokens a second", {"tokens a second": speeds}, words, {})


def gradient_norm(recipe: Recipe, norms: list[tuple[float, float]]) -> Quantity:
    """With the paper's two levels where SoKA trains, as norms depend on the parametrisation; and where gradients are clipped."""
    values, clip = [norm for _, norm in norms], recipe.train.max_grad_norm
    levels = {}
    words = f"before clipping, at most {max(values):.3g}; {f'gradients are clipped at {clip:g}' if clip else 'gradients are not clipped'}"
    if recipe.adapter.method == "soka":
        levels = {"warned above": NORM, "rarely above": RARELY}
        counts = [f"above {level:g} in {sum(value > level for value in values)}" for level in levels.values()]
        words = f"{words}; {' and '.join(counts)} of {len(values)} logged steps"
    if clip and clip not in levels.values() and clip <= 2 * max(values):  # a level far above the curve would flatten it
        levels["clipped at"] = clip
    return Quantity("grad-norm", "Gradient norm", {"before clipping": norms}, words, levels)
