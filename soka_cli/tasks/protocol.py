"""Named ways of asking a benchmark: template, stop strings and where they come from. Figures of two protocols share no table."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.base import Task
from soka_cli.tasks.template import render_example

# Where a completion's own protocol is not known: whatever begins another item, or is a chat's end of turn.
COMMON_STOPS = ("Question:", "Problem:", "### Instruction", "</s>", "<|im_end|>")


@dataclass(frozen=True)
class AskingProtocol:
    """One way of asking.

    `stops` are cut off a completion with all that follows; `reference` says for people what the protocol follows and where it departs.
    """

    name: str
    template: str
    stops: tuple[str, ...]
    reference: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        AskingProtocol(
            name="plain",
            template="plain",
            stops=("Question:", "</s>", "<|im_end|>"),
            reference=(
                "The data set's own format without shots: prompt, stop strings and the metrics strict and flexible are those of "
                "lm-evaluation-harness task gsm8k version 3, which asks with 5 shots by default."
            ),
        ),
        AskingProtocol(
            name="pissa",
            template="alpaca",
            stops=(),
            reference=(
                "PiSSA's scripts (GraphPKU/PiSSA): Alpaca without an input, greedy, no stop strings. Its own test prompts lie in a data "
                "set that is not public, so that they are the training template word for word is an assumption; "
                "MetaMath's cue \"Let's think step by step.\" is left out."
            ),
        ),
    )
}


def protocol_named(name: str) -> AskingProtocol:
    """The protocol called `name`; SokaError exit 2 listing those that are there."""
    if name not in PROTOCOLS:
        raise SokaError(
            f"There is no protocol {name}.",
            where=f"protocol: {name}",
            hint=f"use {' or '.join(PROTOCOLS)}",
            exit_code=ExitCode.USAGE,
        )
    return PROTOCOLS[name]


def stops_of(name: str | None) -> Sequence[str]:
    """The stop strings of a named protocol, or those that are common where none is named."""
    return COMMON_STOPS if name is None else protocol_named(name).stops


def template_digest(task: Task, protocol: AskingProtocol) -> str:
    """sha256 (hex) of the prompt that the protocol makes of the task's specimen."""
    prompt, _ = render_example(protocol.template, task.specimen)
    return sha256(prompt.encode()).hexdigest()
