"""The report's plots: which there are for a run, and in words what each shows."""

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

from soka_cli.stages.changes import SPECTRA
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import DECOMPOSED
from soka_cli.stages.findings import Findings, Step, held_out_curve
from soka_cli.stages.plots import Plot, curve, score_bars, spectra, spectra_compared
from soka_cli.stages.templates import percent

if TYPE_CHECKING:
    from soka_cli.stages.learnt import Learnt
    from soka_cli.stages.weight_spectra import BeforeAfter


def drawings(context: StageContext, findings: Findings, learnt: "Mapping[str, Learnt]", weights: "Mapping[str, BeforeAfter]") -> list[Plot]:
    """Every plot that the run has data for, in the page's order."""
    return [
        *_score_plots(findings),
        *_training_plots(context, findings.steps),
        *_spectra_plots(context, findings),
        *_change_plots(learnt, weights),
    ]


def _score_plots(findings: Findings) -> list[Plot]:
    plots = []
    for name in dict.fromkeys(score.name for score in findings.scores):
        rows = {
            score.kind: {metric: (found.value, found.stderr) for metric, found in score.scores.metrics.items()}
            for score in findings.scores
            if score.name == name
        }
        words = [f"{kind} {metric} {percent(value)}" for kind, metrics in rows.items() for metric, (value, _) in metrics.items()]
        plots.append(score_bars(f"scores-{name}", name, rows, alt=f"Share of right answers in {name}: {', '.join(words)}."))
    return plots


def _training_plots(context: StageContext, steps: tuple[Step, ...]) -> list[Plot]:
    if not steps:
        return []
    loss = {"loss": [(step.step, step.loss) for step in steps]}
    if evaluated := held_out_curve(steps):
        loss["eval_loss"] = evaluated
    span = f"over steps {steps[0].step} to {steps[-1].step}"
    first, last = steps[0], steps[-1]
    clip = context.recipe.train.max_grad_norm
    held_out = f"; on held-out rows {evaluated[0][1]:.4g} first and {evaluated[-1][1]:.4g} last" if evaluated else ""
    rates = [(step.step, step.lr) for step in steps]
    plots = [
        curve("loss", "Loss, nats a token", loss, alt=f"Loss {span}: {first.loss:.4g} first, {last.loss:.4g} last{held_out}."),
        curve("lr", "Learning rate", {"lr": rates}, alt=f"Learning rate {span}: at most {max(rate for _, rate in rates):.3g}."),
    ]
    if norms := [(step.step, step.grad_norm) for step in steps if step.grad_norm is not None]:
        clipped = f"gradients are clipped at {clip:g}" if clip else "gradients are not clipped"
        words = f"Gradient norm before clipping {span}: at most {max(norm for _, norm in norms):.3g}; {clipped}."
        # a level far above the curve would flatten it
        shown = clip if clip and clip <= 2 * max(norm for _, norm in norms) else None
        plots.insert(1, curve("grad-norm", "Gradient norm", {"before clipping": norms}, alt=words, limit=shown, limit_name="clipped at"))
    return plots


def _spectra_plots(context: StageContext, findings: Findings) -> list[Plot]:
    matrices = f"{DECOMPOSED[context.recipe.adapter.init]}s"
    modules = [module for module in findings.layers.modules if module.name in findings.spectra] if findings.layers else []
    plots = []
    for kind in dict.fromkeys(module.name.rpartition(".")[2] for module in modules):
        members = [module for module in modules if module.name.rpartition(".")[2] == kind]
        ranks = [module.rank for module in members]
        words = f"Leading singular values of the rearranged {kind} {matrices} of {len(members)} modules; kept terms: {_span(ranks)}."
        plots.append(spectra(f"spectra-{kind}", kind, [findings.spectra[module.name] for module in members], ranks, alt=words))
    return plots


def _change_plots(learnt: "Mapping[str, Learnt]", weights: "Mapping[str, BeforeAfter]") -> list[Plot]:
    """By kind of module: the spectra of its weights before and after, and of what was learnt."""
    kinds: dict[str, list[str]] = {}
    for module in learnt:
        kinds.setdefault(module.rpartition(".")[2], []).append(module)
    plots = []
    for kind, members in kinds.items():
        read = [weights[module] for module in members if module in weights]
        sides: dict[str, list[list[float]]] = {}
        if read:
            sides = {
                SPECTRA["before"]: [one.before.sigma.tolist() for one in read],
                SPECTRA["after"]: [one.after.sigma.tolist() for one in read],
            }
        sides[SPECTRA["update"]] = [learnt[module].update.tolist() for module in members]
        seconds = {side: [sigma[1] / sigma[0] for sigma in some if len(sigma) > 1 and sigma[0]] for side, some in sides.items()}
        words = ", ".join(f"{side} {median(ratios):.2g}" for side, ratios in seconds.items() if ratios)
        alt = (
            f"Singular values of {kind} in {len(members)} modules relative to the largest; the second one at the median: {words or 'none'}."
        )
        plots.append(spectra_compared(f"changes-{kind}", f"{kind}, before and after", sides, alt=alt))
    return plots


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
