"""Stage report: the run directory as one page for people, its Markdown twin, and one JSON file for programs."""

import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soka_cli import __version__
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.resolved import to_mapping, to_yaml
from soka_cli.run.digest import file_digest
from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest
from soka_cli.run.stage import open_stage
from soka_cli.run.write import atomic_folder, read_json, to_json
from soka_cli.stages.base_at_hand import base_at_hand
from soka_cli.stages.cautions import cautions
from soka_cli.stages.changes import module_changes, movement_rows, spectra_rows
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import COLUMNS, DECOMPOSED, kind_of, kind_row
from soka_cli.stages.digests import digests
from soka_cli.stages.findings import Findings, Layers, files_read, find, held_out_curve
from soka_cli.stages.ledger_table import ledger_lines
from soka_cli.stages.outcome import Cell, Outcome, Table
from soka_cli.stages.planned_and_measured import planned_and_measured
from soka_cli.stages.plots import Plot
from soka_cli.stages.report_drawings import drawings
from soka_cli.stages.sampled_answers import sampled_answers
from soka_cli.stages.symptoms import symptoms
from soka_cli.stages.templates import percent, templates

if TYPE_CHECKING:
    from soka_cli.models.checkpoint import Checkpoint
    from soka_cli.stages.learnt import Learnt
    from soka_cli.stages.weight_spectra import BeforeAfter

STAGE = "report"
TEMPLATES = {"report_page": "report_page.html.jinja", "report_text": "report_page.md.jinja"}


def report(context: StageContext) -> Outcome:
    """Write report/: report.html, report.md, report.json, plots/*.svg, and spectra.safetensors where an adapter was trained.

    A run that is not finished is reported as far as it got. Whenever a file that the report reads has changed, it is written anew.

    Raises:
        SokaError: exit 5, nothing to report yet, or a damaged file, which is named.
    """
    layout, recipe = context.layout, context.recipe
    files = files_read(layout, recipe)
    if not files:
        raise SokaError(
            "There is nothing to report yet.",
            where=str(layout.root),
            why="no stage has left a result there",
            hint=f"soka run --recipe {context.loaded.path or context.loaded.name} --run {shlex.quote(str(layout.root))}",
            exit_code=ExitCode.RUN,
        )
    base = base_at_hand(recipe.model)
    digests = {path.relative_to(layout.root).as_posix(): file_digest(path) for path in files}
    inputs = {"recipe": to_mapping(recipe), "files": digests, "base": base and base.digest, "soka": __version__}
    with open_stage(
        layout,
        STAGE,
        inputs,
        recipe_yaml=to_yaml(recipe),
        source_text=context.loaded.source_text,
        command=context.command,
        force=context.force,
        folders=[layout.report],
        extends=lambda old, new: True,  # a report of less is always replaced by one of more
        reporter=context.reporter,
    ) as stage:
        findings = find(layout, recipe)
        if not stage.done:
            write_report(context, findings, read_changes(context, findings, base))
            stage.finish([layout.report])
    return outcome(context, findings, "already done" if stage.done else "done")


@dataclass(frozen=True)
class Changes:
    """What training changed, by module: the terms, and the weights where the base is at hand. `missing` says why there are no weights."""

    learnt: dict[str, "Learnt"]
    weights: dict[str, "BeforeAfter"]
    missing: tuple[str, ...] = ()


def read_changes(context: StageContext, findings: Findings, base: "Checkpoint | None") -> Changes:
    """Nothing before training, and for other methods than SoKA."""
    if not context.layout.adapter_weights.is_file():
        return Changes({}, {})
    from soka_cli.stages.learnt import read_learnt
    from soka_cli.stages.weight_spectra import weight_spectra

    learnt = read_learnt(context.layout.adapter_weights)
    if not learnt:
        return Changes({}, {})
    without = "there are no spectra of the weights before and after training"
    name = context.recipe.model.name
    if base is None:
        return Changes(learnt, {}, (f"the base model {name} is not on this machine, so {without}",))
    modules = findings.layers.modules if findings.layers else []
    energies = {module.name: module.total_energy if module.weight_energy is None else module.weight_energy for module in modules}
    counts = {module: len(findings.spectra.get(module, ())) or found.now.rank for module, found in learnt.items()}
    try:
        weights = weight_spectra(context, base, learnt, counts, energies)
    except SokaError as error:
        return Changes(learnt, {}, (f"{error.what}, so {without}",))
    return Changes(learnt, weights, () if weights else (f"{name} holds other weights here than those that were trained on, so {without}",))


def write_report(context: StageContext, findings: Findings, changes: Changes) -> None:
    """The whole folder at once."""
    layout = context.layout
    content = contents(context, findings, changes)
    plots = drawings(context, findings, changes.learnt, changes.weights)
    with atomic_folder(layout.report) as folder:
        place = _inside(layout, folder)
        for plot in plots:
            drawn = place(layout.plot(plot.name))
            drawn.parent.mkdir(exist_ok=True)
            drawn.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{plot.svg}\n', encoding="utf-8")
        if changes.learnt:
            from safetensors.torch import save_file

            from soka_cli.stages.learnt import spectra_tensors

            save_file(spectra_tensors(changes.learnt, changes.weights), place(layout.learnt_spectra))
        place(layout.report_findings).write_text(to_json(content), encoding="utf-8")
        for name, template in TEMPLATES.items():
            place(getattr(layout, name)).write_text(render(template, content, plots, layout), encoding="utf-8")


def _inside(layout: RunLayout, folder: Path) -> Any:
    return lambda path: folder / path.relative_to(layout.report)


# ---- figures


def contents(context: StageContext, findings: Findings, changes: Changes) -> dict[str, Any]:
    """report.json, and all that the templates show."""
    run = shlex.quote(str(context.layout.root))
    layers = findings.layers
    changed = module_changes(changes.learnt, changes.weights)
    return {
        "schema_version": 1,
        "name": context.loaded.name,
        "run": str(context.layout.root),
        "model": context.recipe.model.name,
        "method": context.recipe.adapter.method,
        "missing": [*findings.missing, *changes.missing],
        "trainable_parameters": findings.trainable_parameters,
        "headlines": headlines(findings),
        "scores": [{"name": score.name, "kind": score.kind, **score.scores.model_dump()} for score in findings.scores],
        "answers": sampled_answers(context.layout, findings.scores, context.recipe.seed),
        "agreements": findings.agreements,
        "contamination": findings.contamination.model_dump() if findings.contamination else None,
        "training": training_figures(findings),
        "planned": planned_and_measured(context, findings),
        "rows": list(ledger_lines(findings.ledgers)),
        "symptoms": [found.to_mapping() for found in symptoms(findings.steps, context.recipe.adapter)],
        "decomposition": None if layers is None else decomposition_figures(findings, layers, context.recipe.adapter.rank.rule),
        "decomposed": DECOMPOSED[context.recipe.adapter.init],
        "modules": module_rows(findings, {module: found.update_norm for module, found in changes.learnt.items()}),
        "changes": {"modules": changed, "spectra": spectra_rows(changed), "movement": movement_rows(changed)} if changed else None,
        "parity": findings.parity.model_dump() if findings.parity else None,
        "recipe": to_mapping(context.recipe),
        "recipe_yaml": to_yaml(context.recipe),
        "stages": {name: record.model_dump(include=set(STAGE_FIELDS)) for name, record in findings.stages.items()},
        "digests": digests(Manifest.read(context.layout.manifest)),
        "environments": environments(findings),
        "repeat": f"soka run --recipe {run}/recipe.yaml --run {run}-again",
    }


STAGE_FIELDS = ("status", "started", "finished", "seconds", "command", "error")


def headlines(findings: Findings) -> list[dict[str, Any]]:
    """Per evaluation, its first metric for the base and for the adapter; null where one was not asked."""
    lines = []
    for name in dict.fromkeys(score.name for score in findings.scores):
        asked = {score.kind: score.scores.metrics for score in findings.scores if score.name == name}
        metric = next(iter(next(iter(asked.values()))), "")
        values = {kind: asked[kind][metric].value if metric in asked.get(kind, {}) else None for kind in ("base", "adapter")}
        lines.append({"evaluation": name, "metric": metric, **values})
    return lines


def environments(findings: Findings) -> list[dict[str, Any]]:
    """What the stages ran on; stages of one and the same environment together."""
    found: list[dict[str, Any]] = []
    for name, environment in findings.environments.items():
        described = environment.model_dump(exclude={"training", "data"})
        same = next((one for one in found if {**one, "stages": None} == {"stages": None, **described}), None)
        if same is not None:
            same["stages"].append(name)
        else:
            found.append({"stages": [name], **described})
    return found


def training_figures(findings: Findings) -> dict[str, Any] | None:
    """First, last and least of the curves; None before the first logged step."""
    steps = findings.steps
    if not steps:
        return None
    evaluated = held_out_curve(steps)
    norms = [step.grad_norm for step in steps if step.grad_norm is not None]
    return {
        **{name: value for name, value in findings.training.items() if name in ("rows", "seconds")},
        "steps": steps[-1].step,
        "tokens": steps[-1].tokens,
        "first_loss": steps[0].loss,
        "last_loss": steps[-1].loss,
        "first_eval_loss": evaluated[0][1] if evaluated else None,
        "last_eval_loss": evaluated[-1][1] if evaluated else None,
        "largest_grad_norm": max(norms, default=None),
        "tokens_per_s": _median([step.tokens_per_s for step in steps if step.tokens_per_s is not None]),
        "memory_bytes": max((step.memory_bytes for step in steps if step.memory_bytes is not None), default=None),
    }


def _median(values: list[float]) -> int | None:
    return round(sorted(values)[len(values) // 2]) if values else None


def decomposition_figures(findings: Findings, layers: Layers, rule: str) -> dict[str, Any]:
    """layers.json without its modules, which `module_rows` has; the table by kind; warnings with advice."""
    found = cautions(layers.warnings, layers.unresolved, rule=rule)
    return {
        "totals": layers.totals.model_dump(),
        "without_terms": layers.without_terms,
        "kinds": kinds(findings),
        "warnings": [asdict(caution) for caution in found],
    }


def kinds(findings: Findings) -> list[dict[str, Cell]]:
    """Modules by the last word of their names, with a row for all."""
    rows = [module.model_dump() for module in findings.layers.modules] if findings.layers else []
    names = list(dict.fromkeys(map(kind_of, rows)))
    table = [kind_row(name, [row for row in rows if kind_of(row) == name]) for name in names] + [kind_row("all", rows)]
    return [dict(zip(COLUMNS, row, strict=True)) for row in table]


def module_rows(findings: Findings, update_norms: dict[str, float]) -> list[dict[str, Any]]:
    """layers.json with the length of the learnt update as a share of the weight's, null where there is none."""
    rows = [module.model_dump() for module in findings.layers.modules] if findings.layers else []
    for row in rows:
        norm, energy = update_norms.get(row["name"]), row["total_energy"] if row["weight_energy"] is None else row["weight_energy"]
        row["relative_update"] = norm / math.sqrt(energy) if norm is not None and energy else None
    return rows


# ---- pages


def render(template: str, content: dict[str, Any], plots: list[Plot], layout: RunLayout) -> str:
    """One of the report's two templates, filled in."""
    paths = {plot.name: layout.plot(plot.name).relative_to(layout.report).as_posix() for plot in plots}
    groups = {group: [plot for plot in plots if plot.name.startswith(f"{group}-")] for group in ("scores", "spectra", "map", "changes")}
    curves = [plot for plot in plots if not plot.name.startswith(tuple(groups))]
    groups["token"] = [plot for plot in curves if plot.name.endswith("-tokens")]
    groups["step"] = [plot for plot in curves if plot not in groups["token"]]
    places = {f"{group}_plots": some for group, some in groups.items()}
    return templates().get_template(template).render(content, **places, plot_paths=paths)


# ---- the end of the stage


def outcome(context: StageContext, findings: Findings, status: Any) -> Outcome:
    layout = context.layout
    rows = tuple(
        (score.name, score.kind, metric, percent(found.value), percent(found.stderr), score.scores.items)
        for score in findings.scores
        for metric, found in score.scores.metrics.items()
    )
    table = Table("Scores", ("evaluation", "model", "metric", "right", "standard error", "items"), rows)
    missing = read_json(layout.report_findings)["missing"]
    figures = {
        "report": str(layout.report_page),
        "missing": missing,
        "trainable_parameters": findings.trainable_parameters,
        "training": training_figures(findings),
        "scores": [{"name": score.name, "kind": score.kind, "metrics": score.scores.model_dump()["metrics"]} for score in findings.scores],
        "parity": findings.parity.model_dump() if findings.parity else None,
    }
    notes = (*(f"missing: {sentence}" for sentence in missing), f"the page: {layout.report_page}")
    return Outcome(STAGE, status, layout.root, figures, (table,) if rows else (), notes)
