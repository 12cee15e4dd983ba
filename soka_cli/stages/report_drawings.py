"""The report's plots: which there are for a run, and in words what each shows."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from soka_cli.stages.changes import SPECTRA, spread
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import DECOMPOSED
from soka_cli.stages.findings import Findings
from soka_cli.stages.module_maps import module_maps
from soka_cli.stages.plots import Plot, score_bars, spectra, spectra_compared
from soka_cli.stages.templates import percent
from soka_cli.stages.training_curves import training_curves

if TYPE_CHECKING:
    from soka_cli.stages.learnt import Learnt
    from soka_cli.stages.weight_spectra import BeforeAfter


def drawings(context: StageContext, findings: Findings, learnt: "Mapping[str, Learnt]", weights: "Mapping[str, BeforeAfter]") -> list[Plot]:
    """Every plot that the run has data for, in the page's order."""
    return [
        *_score_plots(findings),
        *training_curves(context.recipe, findings.steps),
        *module_maps(findings.layers.modules if findings.layers else ()),
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


def _spectra_plots(context: StageContext, findings: Findings) -> list[Plot]:
    matrices = f"{DECOMPOSED[context.recipe.adapter.init]}s"
    modules = [module for module in findings.layers.modules if module.name in findings.spectra] if findings.layers else []
    plots = []
    for kind in dict.fromkeys(module.name.rpartition(".")[2] for module in modules):
        members = [module for module in modules if module.name.rpartition(".")[2] == kind]
        marks: dict[str, list[int | None]] = {
            f"energy {context.recipe.adapter.rank.tau:g}": [module.rank_energy for module in members],
            "elbow": [module.rank_elbow for module in members],
            "kept": [module.rank for module in members],
        }
        told = ", ".join(f"{mark} {_span(ranks)}" for mark, ranks in marks.items())
        words = f"Leading singular values of the rearranged {kind} {matrices} of {len(members)} modules; {told}."
        plots.append(spectra(f"spectra-{kind}", kind, [findings.spectra[module.name] for module in members], marks, alt=words))
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


def _span(places: Sequence[int | None]) -> str:
    """`after term 2`, `after term 1 to 4`; what lies beyond the computed spectrum is said."""
    known = [place for place in places if place is not None]
    beyond = f"beyond the computed terms in {len(places) - len(known)}" if len(known) < len(places) else ""
    return " and ".join(part for part in (f"after term {spread(known)}" if known else "", beyond) if part)
