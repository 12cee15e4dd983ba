"""Words around a question and its answer. The end-of-sequence token is the tokenizer's business, not a word."""

from collections.abc import Mapping
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import Section
from soka_cli.tasks.base import Example

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:"
)


class Words(Section):
    """A question's and an answer's words with the row's columns in braces: `Question: {question}`, `{test_list[0]}`."""

    prompt: str
    target: str = ""
    stripped: bool = False

    def render(self, columns: Mapping[str, Any]) -> tuple[str, str]:
        """Text of the prompt and text of the target; braces inside a column's text are words like others.

        `stripped` takes the white space around the prompt away and puts one line break behind it.
        """
        prompt = self.prompt.format_map(columns)
        return f"{prompt.strip()}\n" if self.stripped else prompt, self.target.format_map(columns)


def render(template: str, prompt: str, target: str) -> tuple[str, str]:
    """Text of the prompt and text of the target under `template`.

    plain leaves both as they are. alpaca is Stanford Alpaca's form without an input, as PiSSA's scripts train on it
    (GraphPKU/PiSSA, train.py): the target follows `### Response:` at once and ends in a line break.

    Raises:
        SokaError: exit 2 for a template that is not text alone (chat needs a tokenizer) or not known.
    """
    if template == "plain":
        return prompt, target
    if template == "alpaca":
        return ALPACA.replace("{prompt}", prompt), target + "\n"
    raise SokaError(
        f"Template {template} can't be written without a tokenizer.",
        where=f"template: {template}",
        hint="use template plain or alpaca",
        exit_code=ExitCode.USAGE,
    )


def render_example(template: str, example: Example) -> tuple[str, str]:
    """As `render`, with the benchmark's own words where the template is plain."""
    if template == "plain" and example.plain is not None:
        return example.plain
    return render(template, example.prompt, example.target)
