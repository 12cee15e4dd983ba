"""GSM8K: grade-school word problems whose answers are numbers (Cobbe et al., arXiv 2110.14168)."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.base import Example, Judgement, cut_at, text_column
from soka_cli.tasks.metamath import rounded_equal
from soka_cli.tasks.number import Number, exact, numbers, spelled

MARK = "####"
FORM = "GSM8K's form, with the fields question and answer"

# lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml version 3: the filters strict-match and flexible-extract.
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
COT_STRICT = re.compile(r"The answer is (\-?[0-9\.\,]+).")  # its task gsm8k_cot version 3
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")

PHRASE = re.compile(r"the (?:final )?answer is:?", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
DECORATION = re.compile(r"(?:[ \t*_=:~≈(\[{]|\\boxed|\\fbox|\\\(|\\\[|\$(?!-))*")


@dataclass(frozen=True)
class Gsm8k:
    """Metrics: `strict` and `flexible` as lm-evaluation-harness has them, and `numeric`, equality of exact numbers.

    Readings: `gsm8k_cot`, the harness's strict-match of its task of that name, and `metamath`, as MetaMath's scripts read.
    """

    name: str = "gsm8k"
    metrics: tuple[str, ...] = ("strict", "flexible", "numeric")
    readings: tuple[str, ...] = ("gsm8k_cot", "metamath")
    fields: tuple[str, ...] = ("question", "answer")

    @property
    def specimen(self) -> Example:
        return _example("", {"question": "{question}", "answer": "{answer}"}, gold="")

    def example(self, row: dict[str, Any], index: int) -> Example:
        """`question` and `answer` as the data set writes them; the gold answer stands behind the last `####`."""
        columns = {field: text_column(row, field, index, FORM) for field in self.fields}
        if MARK not in columns["answer"]:
            raise SokaError(
                f"Row {index} has no line '{MARK} <answer>', so there is no gold answer to compare with.",
                where=f"field answer of row {index}",
                hint="give a file in GSM8K's form: question, and answer ending in a line '#### 42'",
                exit_code=ExitCode.DATA,
            )
        return _example(str(row.get("id", index)), columns, gold=columns["answer"].rsplit(MARK, 1)[1].strip())

    def judge(self, completion: str, example: Example, stops: Sequence[str], readings: Sequence[str] = ()) -> Judgement:
        """numeric and metamath read the completion up to the first of `stops`, the harness's filters read it as given."""
        text, gold = cut_at(completion, stops)[0], example.gold
        number = answer_number(text)
        correct = {
            "strict": _same_text(first_marked(completion), gold),
            "flexible": _same_text(last_number_like(completion), gold),
            "numeric": number is not None and number.value == exact(gold.rsplit(MARK, 1)[-1]),
        }
        if "gsm8k_cot" in readings:
            correct["gsm8k_cot"] = _same_text(first_phrased(completion), gold)
        if "metamath" in readings:
            correct["metamath"] = rounded_equal(text, gold)
        return Judgement(extracted=number.text if number is not None else None, correct=correct)


def first_marked(completion: str) -> str | None:
    """The harness's strict-match: what follows the first `#### `, exactly one space."""
    match = STRICT.search(completion)
    return match[1].strip() if match else None


def first_phrased(completion: str) -> str | None:
    """The harness's strict-match of gsm8k_cot; the character that has to follow the number may be its own last digit."""
    match = COT_STRICT.search(completion)
    return match[1].strip() if match else None


def last_number_like(completion: str) -> str | None:
    """The harness's flexible-extract: the last run of digits, `$`, dots and commas, whatever it means."""
    found = FLEXIBLE.findall(completion)
    return next(group for group in found[-1] if group).strip() if found else None


def answer_number(text: str) -> Number | None:
    """The number that a text gives as its answer.

    The first of these that yields one: right behind the last `####`; behind the last `The answer is:`, on its line; in the last
    `\\boxed{}`; the last number of all. Markdown, currency and LaTeX around a number are passed over.
    """
    text = spelled(text)
    for reading in (_marked, _phrased, _boxed, _last):
        if (number := reading(text)) is not None:
            return number
    return None


def _marked(text: str) -> Number | None:
    _, mark, behind = text.rpartition(MARK)
    if not mark:
        return None
    line = behind.split("\n", 1)[0]
    decoration = DECORATION.match(line)
    number = next(numbers(line[decoration.end() :] if decoration else line), None)
    return number if number is not None and number.start == 0 else None


def _phrased(text: str) -> Number | None:
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return None
    return next(numbers(text[phrases[-1].end() :].split("\n", 1)[0]), None)


def _boxed(text: str) -> Number | None:
    boxes = list(BOX.finditer(text))
    content = _balanced(text, boxes[-1].end()) if boxes else None
    return next(numbers(content), None) if content is not None else None


def _balanced(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes the one before `start`; None where it is never closed."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place]
    return None


def _last(text: str) -> Number | None:
    return next(iter(deque(numbers(text), maxlen=1)), None)


def _same_text(answer: str | None, gold: str) -> bool:
    """String equality after the harness's deletions, case apart."""
    return answer is not None and _normal(answer) == _normal(gold)


def _normal(text: str) -> str:
    """What exact_match of the harness's task compares: commas, `$`, all up to the last `#### ` and one final full stop deleted."""
    behind = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", behind).lower()


def _example(identity: str, columns: dict[str, str], *, gold: str) -> Example:
    question, answer = columns["question"], columns["answer"]
    return Example(
        id=identity, prompt=question, target=answer, gold=gold, plain=(f"Question: {question}\nAnswer:", f" {answer}"), columns=columns
    )
