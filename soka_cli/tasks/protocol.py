"""Named ways of asking a benchmark: words, shots, stop strings and where they come from. Figures of two protocols share no table.

Each is a file configs/protocols/<name>-<task>.yaml, which recipes extend for its `data` and `eval`; its section `protocol` says what
the name means, and no recipe can change that.
"""

import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.places import packaged
from soka_cli.recipe.schema import PROGRAM_TASKS, TASK_PROTOCOLS, Name, PositiveCount, Section
from soka_cli.tasks.base import Example, Task
from soka_cli.tasks.program import Postprocessing
from soka_cli.tasks.template import Words, render_example

# Where a completion's own protocol is not known: whatever begins another item, or is a chat's end of turn.
COMMON_STOPS = ("Question:", "Problem:", "### Instruction", "</s>", "<|im_end|>")
PROGRAM_STOPS = ("[DONE]", "### Instruction", "</s>", "<|im_end|>", "<|endoftext|>")  # a program may well say "Problem:"
BETWEEN_SHOTS = "\n\n"
SHOT_FILES = "harness"


class Shots(Section):
    """Solved items in front of the question.

    `of`: the rows of the packaged `file`, the same for every item; or training rows, drawn anew for each item (`drawn`, which
    needs a seed) or picked and laid out as `file` says (`picked`).
    """

    count: PositiveCount
    of: Literal["file", "drawn", "picked"]
    file: Name | None = None
    seed: int | None = None

    @property
    def path(self) -> Path:
        """Of the packaged file."""
        return packaged("configs") / "protocols" / SHOT_FILES / str(self.file)


class AskingProtocol(Section):
    """One way of asking one benchmark.

    Attributes:
        template: plain, alpaca, or the words themselves, which name the row's columns in braces.
        cue: text that follows the template's prompt.
        stops: cut off a completion with all that follows.
        max_new_tokens: the longest completion unless the recipe says otherwise, in tokens.
        decoding: how the next token is chosen.
        postprocessing: what becomes of a completion before it is judged; answers of gsm8k and math are read by their metrics.
        readings: metrics beside the task's own.
        reference: for people, what the protocol follows and where it departs.
    """

    name: Name
    task: Name
    template: Literal["plain", "alpaca"] | Words
    cue: str = ""
    shots: Shots | None = None
    stops: tuple[str, ...]
    max_new_tokens: PositiveCount
    decoding: Literal["greedy"]
    postprocessing: Postprocessing = "none"
    readings: tuple[str, ...] = ()
    reference: str = Field(min_length=1)

    @property
    def needs_rows(self) -> bool:
        """Whether shots are taken from training rows."""
        return self.shots is not None and self.shots.of != "file"

    @property
    def template_name(self) -> str:
        """plain, alpaca, or own where the protocol brings its own words."""
        return self.template if isinstance(self.template, str) else "own"

    def render(self, example: Example) -> tuple[str, str]:
        """Prompt and target of one item, without shots."""
        prompt, target = (
            self.template.render(example.columns) if isinstance(self.template, Words) else render_example(self.template, example)
        )
        return prompt + self.cue, target

    def prompt(self, example: Example, shots: Sequence[dict[str, Any]] = ()) -> str:
        """What a model is asked: the shots' prompts and targets with an empty line behind each, then the item's prompt.

        Args:
            shots: rows by the columns that the protocol's words name; as many as the protocol asks for.
        """
        assert len(shots) == (self.shots.count if self.shots else 0)
        if not shots:
            return self.render(example)[0]
        assert isinstance(self.template, Words)
        solved = (prompt + target + BETWEEN_SHOTS for prompt, target in map(self.template.render, shots))
        return "".join(solved) + self.render(example)[0]

    @property
    def sha256(self) -> str:
        """sha256 (hex) of all that the protocol says, the packaged shots' text included, its reference for people apart."""
        said = self.model_dump(mode="json", exclude={"reference"})
        shots = sha256(self.shots.path.read_bytes()).hexdigest() if self.shots is not None and self.shots.file else None
        return sha256(json.dumps([said, shots], sort_keys=True).encode()).hexdigest()


ADDED_PROTOCOLS: dict[tuple[str, str], AskingProtocol] = {}
"""By name and task, those that came with a task of one's own (`tasks/added.py`)."""


def protocol_named(name: str, task: str) -> AskingProtocol:
    """The protocol called `name` of a task; SokaError exit 2 listing those that the task has."""
    if name not in (there := TASK_PROTOCOLS.get(task, ())):
        raise SokaError(
            f"There is no protocol {name} for task {task}.",
            where=f"protocol: {name}",
            hint=f"use {' or '.join(there)}",
            exit_code=ExitCode.USAGE,
        )
    return ADDED_PROTOCOLS.get((name, task)) or _read(name, task)


@cache
def _read(name: str, task: str) -> AskingProtocol:
    text = (packaged("configs") / "protocols" / f"{name}-{task}.yaml").read_text(encoding="utf-8")
    return AskingProtocol.model_validate({"name": name, "task": task} | yaml.safe_load(text)["protocol"])


def stops_of(name: str | None, task: str) -> Sequence[str]:
    """The stop strings of a named protocol, or those that are common where none is named."""
    if name is not None:
        return protocol_named(name, task).stops
    return PROGRAM_STOPS if task in PROGRAM_TASKS else COMMON_STOPS


def template_digest(task: Task, protocol: AskingProtocol) -> str:
    """sha256 (hex) of prompt and target that the protocol makes of the task's specimen; shots are the protocol's own digest's."""
    return sha256("\n".join(protocol.render(task.specimen)).encode()).hexdigest()
