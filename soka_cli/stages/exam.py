"""One entry of the recipe's eval list, ready to be asked: no model is needed up to here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from soka_cli.data.load import load_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.places import locate
from soka_cli.recipe.resolved import to_mapping
from soka_cli.recipe.schema import EvalSection, Recipe, ShotsSection
from soka_cli.run.digest import file_digest, json_digest
from soka_cli.stages.answerer import Decoding, Question
from soka_cli.tasks.base import Example, Task, task_named
from soka_cli.tasks.few_shot import shots_for
from soka_cli.tasks.protocol import AskingProtocol, protocol_named, template_digest

# What the digest of the data stands for, or what only decides how fast the answers come.
NO_INPUTS = ("path", "revision", "config", "split", "shots", "batch_size", "batching")
# Inputs from the day on which somebody asks for them: an evaluation from before they were there stays what it is.
SAMPLING = ("samples", "temperature", "top_p", "pass_at")


@dataclass(frozen=True)
class Exam:
    """The items of one entry, in the data's order, with the words that ask them."""

    entry: EvalSection
    task: Task
    protocol: AskingProtocol
    examples: tuple[Example, ...]
    prompts: tuple[str, ...]
    max_new_tokens: int
    data_sha256: str
    shots_sha256: str | None
    template_sha256: str
    inputs: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        return self.entry.folder

    @property
    def judged(self) -> tuple[str, ...]:
        """The metrics of a single completion: the task's own, then those that the protocol reads beside them."""
        return (*self.task.metrics, *self.protocol.readings)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the items: pass@k for the entry's further k stand behind the task's own."""
        draws = (f"pass@{k}" for k in dict.fromkeys(self.entry.pass_at) if k != 1)
        return (*self.task.metrics, *draws, *self.protocol.readings)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.protocol.stops, self.max_new_tokens, self.entry.temperature, self.entry.top_p)

    @property
    def questions(self) -> list[Question]:
        """What is asked: every item in the data's order, as often as samples are wanted."""
        asked = zip(self.examples, self.prompts, strict=True)
        return [
            Question(example.id, sample, prompt, sample_seed(self.seed, example.id, sample))
            for example, prompt in asked
            for sample in range(self.entry.samples)
        ]


def prepare_exams(recipe: Recipe, *, offline: bool = False) -> list[Exam]:
    """All entries of the recipe.

    Raises:
        SokaError: exit 2 for no entry at all, exit 4 for missing or damaged data.
    """
    if not recipe.eval:
        raise SokaError(
            "The recipe has nothing to evaluate.",
            where="eval",
            why="its eval list is empty",
            hint="add an entry to the recipe, e.g. eval: [{task: gsm8k, protocol: plain, path: openai/gsm8k, config: main}]",
            exit_code=ExitCode.USAGE,
        )
    entries = to_mapping(recipe)["eval"]
    return [prepare(entry, mapping, seed=recipe.seed, offline=offline) for entry, mapping in zip(recipe.eval, entries, strict=True)]


def prepare(entry: EvalSection, mapping: dict[str, Any], *, seed: int, offline: bool) -> Exam:
    """Read the entry's rows, all of them (so that the digest does not depend on the limit), and render its prompts."""
    task, protocol = task_named(entry.task), protocol_named(entry.protocol, entry.task)
    rows = load_rows(entry.path, revision=entry.revision, config=entry.config, split=entry.split, task=entry.task, offline=offline)
    examples = tuple(task.example(row, index) for index, row in enumerate(rows[: entry.limit]))
    refuse_shared_ids(examples, entry)
    longest = entry.max_new_tokens or protocol.max_new_tokens
    shown = load_shots(entry, offline=offline) if protocol.needs_rows else None
    return Exam(
        entry=entry,
        task=task,
        protocol=protocol,
        examples=examples,
        prompts=tuple(protocol.prompt(example, shots) for example, shots in zip(examples, shots_for(protocol, shown), strict=False)),
        max_new_tokens=longest,
        data_sha256=rows_digest(entry.path, rows),
        shots_sha256=json_digest(shown) if shown is not None else None,
        template_sha256=template_digest(task, protocol),
        inputs=inputs_of(entry, mapping, seed) | {"max_new_tokens": longest},
        seed=seed,
    )


def inputs_of(entry: EvalSection, mapping: dict[str, Any], seed: int) -> dict[str, Any]:
    """What of an entry its answers and scores depend on; the recipe's seed counts where tokens are drawn."""
    usual = {name: EvalSection.model_fields[name].default for name in SAMPLING}
    named = {key: value for key, value in mapping.items() if key not in NO_INPUTS and not (key in usual and value == usual[key])}
    return named | ({"seed": seed} if entry.temperature else {})


def sample_seed(seed: int, item: str, sample: int) -> int:
    """What the tokens of an item's sample are drawn by, below 2**32."""
    return int(text_digest(f"{seed} {sample} {item}")[:8], 16)


def rows_digest(path: str, rows: Sequence[Any]) -> str:
    """sha256 (hex) of the file that the rows came from; of the rows themselves where there is no file."""
    place = locate(path)
    return file_digest(place) if isinstance(place, Path) and place.is_file() else json_digest(rows)


def load_shots(entry: EvalSection, *, offline: bool) -> list[dict[str, Any]]:
    """The training rows that the entry's protocol shows solved.

    Raises:
        SokaError: exit 2 where they are not named and the entry's own data set is a file, which has no training split.
    """
    named = entry.shots or ShotsSection()
    if named.path is None and isinstance(locate(entry.path), Path):
        raise SokaError(
            f"Protocol {entry.protocol} shows solved training rows, and the recipe does not say where they lie.",
            where=f"eval entry {entry.folder}: shots",
            why="the entry's path is a file or folder of test items",
            hint="name the benchmark's training rows in the entry: shots: {path: train.jsonl}",
            exit_code=ExitCode.USAGE,
        )
    source = named if named.path is not None else entry
    return load_rows(named.path or entry.path, revision=source.revision, config=source.config, split=named.split, offline=offline)


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
