"""MATH answers as lm-evaluation-harness 0.4.13 reads them: its tasks hendrycks_math and minerva_math."""

import json
import re
from dataclasses import dataclass
from functools import cache

from soka_cli.recipe.places import packaged
from soka_cli.tasks.math_equivalence import equivalent
from soka_cli.tasks.symbolic import minerva_equal

PHRASE = re.compile(r"Final Answer: The final answer is(.*?). I hope it is correct.")
HOPE = "I hope it is correct."
COMMAND = re.compile(r"(\\[a-zA-Z]+)")
GROUPED = re.compile(r"-?\d{1,3}(,\d{3})+")
INTEGER = re.compile(r"-?[1-9][0-9]{0,30}|0", re.ASCII)


def span_equivalent(completion: str, gold: str) -> bool:
    """hendrycks_math: what stands between the first and the last `$`, or the whole text, by the authors' normalisation."""
    first, last = completion.find("$"), completion.rfind("$")
    return equivalent(completion[first + 1 : last] if first < last else completion, gold, any_slash=False)


def minerva_equivalent(completion: str, gold: str) -> bool:
    """minerva_math's exact_match: behind the phrase of the prompt, normalised, the same text or the same to sympy.

    The pattern wants a character and a space before its last words, so a completion that ends with the answer is right only with
    a full stop and a space (or any two characters) behind it.
    """
    match = PHRASE.search(completion + HOPE)
    if match is None:
        return False
    answer, wanted = minerva_normal(match[1].strip()), minerva_normal(gold)
    if answer == wanted and answer:
        return True
    if INTEGER.fullmatch(answer) and INTEGER.fullmatch(wanted):
        return False
    return minerva_equal(answer, wanted)[0]


@dataclass(frozen=True)
class Normalisation:
    """What is taken out of an answer, in order; see configs/protocols/harness/README.md for where the lists come from."""

    removed: tuple[str, ...]
    replaced: tuple[tuple[str, str], ...]
    patterns: tuple[tuple[re.Pattern[str], str], ...]


@cache
def _normalisation() -> Normalisation:
    lists = json.loads((packaged("configs") / "protocols" / "harness" / "minerva_normalisation.json").read_text(encoding="utf-8"))
    return Normalisation(
        removed=tuple(lists["removed"]),
        replaced=tuple((old, new) for old, new in lists["replaced"]),
        patterns=tuple((re.compile(pattern), replacement) for pattern, replacement in lists["patterns"]),
    )


def minerva_normal(answer: str) -> str:
    """The answer behind its last equals sign, without units and shorthand (Lewkowycz et al., arXiv 2206.14858, appendix D)."""
    rules = _normalisation()
    answer = answer.rpartition("=")[2]
    for word in filter(str.isalpha, rules.removed):
        answer = re.sub(rf"(?<!\\)\b{word}\b", "", answer)
    for old, new in rules.replaced:
        answer = answer.replace(old, new)
    for text in rules.removed:
        answer = _outside_commands(answer, text) if text.isalpha() else answer.replace(text, "")
    for pattern, replacement in rules.patterns:
        answer = pattern.sub(replacement, answer)
    answer = answer.replace("$", "")
    return answer.replace(",", "") if GROUPED.fullmatch(answer) else answer


def _outside_commands(answer: str, word: str) -> str:
    """The answer without `word`, LaTeX commands left whole: the ft of \\left is no foot."""
    parts = COMMAND.split(answer)
    return "".join(part if part.startswith("\\") and index % 2 else part.replace(word, "") for index, part in enumerate(parts))
