"""The model card of an exported adapter: what it is, how it was made and did, how to load it, whose licences bind it."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from soka_cli import __version__
from soka_cli.recipe.places import locate
from soka_cli.recipe.resolved import to_mapping
from soka_cli.run.write import read_json
from soka_cli.stages.context import StageContext

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
TRAINING = ("steps", "tokens", "rows", "trainable_parameters", "first_loss", "last_loss", "first_eval_loss", "last_eval_loss", "seconds")


@dataclass(frozen=True)
class Card:
    """What a card says beyond what the run directory does.

    Args:
        title: its heading.
        form: one paragraph on what the files are, and how exact.
        use: Python that loads them; BASE, REVISION and FOLDER are filled in.
        tags: for the Hub.
    """

    title: str
    form: str
    use: str
    tags: tuple[str, ...]


def public(name: str) -> str:
    """A Hub id as it is; of a path on this machine its last part alone, for a card may be published."""
    return Path(name).name if isinstance(locate(name), Path) or name.startswith(("/", "~", ".")) else name


def is_public(name: str) -> bool:
    return public(name) == name


def carry_licences(base: Path | None, folder: Path) -> list[str]:
    """Copy the base's own licence files beside the adapter; their names. None are at hand where the base is not."""
    found = sorted({path for pattern in LICENCES for path in base.glob(pattern) if path.is_file()}) if base is not None else []
    for path in found:
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in found]


def card_text(context: StageContext, card: Card, *, base: Path | None, licences: Sequence[str], folder: str) -> str:
    """README.md, with the front matter that the Hub reads."""
    model = context.recipe.model
    base_name = public(model.name)
    use = card.use.replace("BASE", repr(base_name)).replace("REVISION", repr(model.revision)).replace("FOLDER", repr(folder))
    sections = [
        ("Files", card.form),
        ("Use", f"```python\n{use.strip()}\n```"),
        ("Base", base_text(context)),
        ("Data", "\n".join(data_lines(context))),
        ("Training", training_text(context)),
        ("Scores", scores_text(context)),
        ("Recipe", f"```yaml\n{yaml.safe_dump(shown_recipe(context), sort_keys=False, allow_unicode=True, width=120)}```"),
        ("Licences", licence_text(base_name, licences)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections if text)
    return f"---\n{front_matter(context, card, base)}---\n\n# {card.title}\n\n{body}\n\nMade with soka {__version__}.\n"


def front_matter(context: StageContext, card: Card, base: Path | None) -> str:
    """Only what is known: a folder on this machine is no base that the Hub could link to, and no licence is guessed."""
    name = context.recipe.model.name
    sets = [source.path for source in context.recipe.data.sources if is_public(source.path)]
    facts: dict[str, Any] = {"library_name": "peft", "tags": list(dict.fromkeys(card.tags)), "pipeline_tag": "text-generation"}
    facts |= {"base_model": name} if is_public(name) else {}
    facts |= {"datasets": sets} if sets else {}
    facts |= stated_licence(base)
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def stated_licence(base: Path | None) -> dict[str, Any]:
    """The licence that the base's own card states."""
    try:
        _, matter, _ = (base / "README.md").read_text(encoding="utf8").split("---", 2) if base is not None else ("", "", "")
        facts = yaml.safe_load(matter)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: facts[key] for key in ("license", "license_name", "license_link") if key in facts} if isinstance(facts, dict) else {}


def base_text(context: StageContext) -> str:
    model = context.recipe.model
    text = f"`{public(model.name)}`, revision `{model.revision or 'not pinned'}`, trained over it in {model.dtype}"
    return text + (f", quantised to {model.quantization}." if model.quantization != "none" else ".")


def data_lines(context: StageContext) -> Iterable[str]:
    """A line for each source of training rows."""
    for source in context.recipe.data.sources:
        facts = {
            "revision": source.revision,
            "configuration": source.config,
            "split": source.split,
            "rows": source.rows,
            "task": source.task,
        }
        told = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        yield f"- `{public(source.path)}`: {told}"


def training_text(context: StageContext) -> str:
    """The figures of env/train.json; nothing where they are not there."""
    path = context.layout.environment("train")
    kept = read_json(path) if path.is_file() else {}
    figures = kept.get("training") if isinstance(kept, dict) else None
    if not isinstance(figures, dict):
        return ""
    rows = [(name.replace("_", " "), figure(figures[name])) for name in TRAINING if figures.get(name) is not None]
    return table(("", "value"), [("method", f"`{context.recipe.adapter.method}`"), *rows])


def scores_text(context: StageContext) -> str:
    """All scores that the run has, with standard errors over items."""
    rows = []
    for entry in context.recipe.eval:
        for kind in ("base", "adapter", "merged"):
            path = context.layout.scores(entry.folder, kind)
            scores = read_json(path) if path.is_file() else {}
            for name, one in scores.get("metrics", {}).items():
                error = "" if one["stderr"] is None else f" +- {one['stderr']:.3f}"
                rows.append((entry.folder, name, kind, f"{one['value']:.3f}{error}", str(scores["items"])))
    if not rows:
        return "None: this run asked no benchmark."
    return table(("benchmark", "metric", "model", "value", "items"), rows) + "\n\nValues with their standard errors over items."


def shown_recipe(context: StageContext) -> Any:
    """The resolved recipe, with this machine's folders cut to their last part."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        return public(value) if isinstance(value, str) and value.startswith(("/", "~")) else value

    return cut(to_mapping(context.recipe))


def licence_text(base_name: str, licences: Sequence[str]) -> str:
    """What binds whoever uses this; soka's own licence does not pass over to what it trains."""
    there = (
        f"Its files {', '.join(f'`{name}`' for name in licences)} lie beside this one." if licences else "Look for its terms at its source."
    )
    return (
        f"The adapter is of no use without `{base_name}`, whose licence binds whoever uses or passes on the two. {there} "
        "The data sets keep their own licences, some of which bind models that are trained on them. "
        "soka's licence says nothing about adapters made with it."
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
