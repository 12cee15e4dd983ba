"""One entry of the recipe's eval list, ready to be asked: no model is needed up to here."""

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from soka_cli.data.load import load_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.places import locate
from soka_cli.recipe.resolved import to_mapping
from soka_cli.recipe.schema import EvalSection, Recipe
from soka_cli.run.digest import file_digest, json_digest
from soka_cli.tasks.base import Example, Task, task_named
from soka_cli.tasks.protocol import AskingProtocol, protocol_named, template_digest
from soka_cli.tasks.template import render_example

# What the digest of the data stands for, or what only decides how fast the answers come.
NO_INPUTS = ("path", "revision", "config", "split", "batch_size")


@dataclass(frozen=True)
class Exam:
    """The items of one entry, in the data's order, with the words that ask them."""

    entry: EvalSection
    task: Task
    protocol: AskingProtocol
    examples: tuple[Example, ...]
    prompts: tuple[str, ...]
    data_sha256: str
    template_sha256: str
    inputs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.entry.folder


def prepare_exams(recipe: Recipe, *, offline: bool = False) -> list[Exam]:
    """All entries of the recipe. Tasks are looked at first, then data, so that nothing is loaded for an entry that can't be asked.

    Raises:
        SokaError: exit 2 for no entry at all or a task that is not there, exit 4 for missing or damaged data.
    """
    if not recipe.eval:
        raise SokaError(
            "The recipe has nothing to evaluate.",
            where="eval",
            why="its eval list is empty",
            hint="add an entry to the recipe, e.g. eval: [{task: gsm8k, protocol: plain, path: openai/gsm8k, config: main}]",
            exit_code=ExitCode.USAGE,
        )
    for entry in recipe.eval:
        task_named(entry.task)
    entries = to_mapping(recipe)["eval"]
    return [prepare(entry, mapping, offline=offline) for entry, mapping in zip(recipe.eval, entries, strict=True)]


def prepare(entry: EvalSection, mapping: dict[str, Any], *, offline: bool) -> Exam:
    """Read the entry's rows, all of them (so that the digest does not depend on the limit), and render its prompts."""
    task, protocol = task_named(entry.task), protocol_named(entry.protocol)
    rows = load_rows(entry.path, revision=entry.revision, config=entry.config, split=entry.split, offline=offline)
    examples = tuple(task.example(row, index) for index, row in enumerate(rows[: entry.limit]))
    refuse_shared_ids(examples, entry)
    place = locate(entry.path)
    return Exam(
        entry=entry,
        task=task,
        protocol=protocol,
        examples=examples,
        prompts=tuple(render_example(protocol.template, example)[0] for example in examples),
        data_sha256=file_digest(place) if isinstance(place, Path) and place.is_file() else json_digest(rows),
        template_sha256=template_digest(task, protocol),
        inputs={key: value for key, value in mapping.items() if key not in NO_INPUTS},
    )


def refuse_shared_ids(examples: tuple[Example, ...], entry: EvalSection) -> None:
    """Answers are kept by id, so two items can't share one."""
    identity, count = Counter(example.id for example in examples).most_common(1)[0]
    if count > 1:
        raise SokaError(
            f"{count} items share the id {identity}.",
            where=entry.path,
            hint="give each row its own id, or drop the column id",
            exit_code=ExitCode.DATA,
        )


def text_digest(text: str) -> str:
    """sha256 (hex) of a text's UTF-8 bytes."""
    return sha256(text.encode("utf-8", "replace")).hexdigest()
