"""The text that the base learns from: everything the task spells, and nothing of what the adapter has to teach."""

import re
from itertools import islice

import pytest

from soka_cli.demo.arithmetic import EQUATION
from soka_cli.demo.corpus import CARRIED_ON, OPENINGS, SHARES, decided, documents
from soka_cli.demo.problems import demo_splits
from soka_cli.tasks.base import task_named
from soka_cli.tasks.template import render_example

KINDS = {"arithmetic": r"\d+[-+*/]\d+=\d+\n", "question": "Question: "}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(documents(0), 8000))


def kind(text: str) -> str:
    return next((name for name, start in KINDS.items() if re.match(start, text)), "story")


def spellings(text: str) -> set[str]:
    """Words and signs with the character before them, which decides how a byte-level tokenizer spells them."""
    return set(re.findall(r"(?:^|(?<=\n)|.|\n)(?:[A-Za-z]+|#+|\d|[^\sA-Za-z#\d])", f"\n{text}"))


def test_spellings_tell_a_word_at_the_start_of_a_line_from_one_within() -> None:
    assert {"\nThe", " The"} <= spellings("The pens. The\nThe")
    assert "\nThe" not in spellings("See The pens")


def test_every_spelling_of_the_task_occurs_also_at_the_start_of_a_line(texts: list[str]) -> None:
    task = task_named("gsm8k")
    train, test = demo_splits()
    wanted: set[str] = set()
    for index, problem in enumerate(train + test):
        wanted |= spellings("".join(render_example("plain", task.example(problem.row, index))))
    assert len(wanted) > 100
    assert wanted - set().union(*map(spellings, texts)) == set()


def test_the_shares_of_arithmetic_stories_and_questions_are_those_stated(texts: list[str]) -> None:
    whole = sum(map(len, texts))
    for name, share in SHARES.items():
        assert sum(len(text) for text in texts if kind(text) == name) / whole == pytest.approx(share, abs=0.002)
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_no_line_is_an_answer_line(texts: list[str]) -> None:
    assert not [text for text in texts if re.search(r"#### *[-$]?\d", text)]
    assert any(text.startswith("#### ") for text in texts)


def test_a_question_stands_once_has_a_bare_number_and_no_equation(texts: list[str]) -> None:
    asked = [text for text in texts if "Question:" in text or "?" in text or "Answer:" in text]
    assert len(asked) > 500
    for text in asked:
        assert re.fullmatch(r"Question: [^?\n=]+\?\nAnswer: \d+", text)


def test_every_scene_has_one_equation_so_no_question_needs_two_steps() -> None:
    for scene in OPENINGS + CARRIED_ON:
        assert len(EQUATION.findall(scene.equation)) == 1
        left, _, right, _ = EQUATION.findall(scene.equation)[0]
        assert {left, right} == set(re.findall(r"\{(\w)\}", scene.given)) | ({"v"} if scene in CARRIED_ON else set())
        assert bool(scene.question) == (scene in OPENINGS)


def test_no_question_of_the_task_is_in_the_text(texts: list[str]) -> None:
    def form(text: str) -> str:
        return re.sub(r"\d+|\b[A-Z][a-z]+\b", "_", text)

    asked = {form(text[len("Question: ") :].split("\n")[0]) for text in texts if kind(text) == "question"}
    assert asked and not asked & {form(problem.question) for problem in demo_splits()[1]}


def test_every_equation_holds_and_every_result_is_decided(texts: list[str]) -> None:
    count = 0
    for text in texts:
        spans = decided(text)
        for match in re.finditer(r"(\d+)([-+*/])(\d+)=(\d+)", text):
            left, operator, right, value = match.groups()
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right), "/": int(left) / int(right)}[
                operator
            ] == int(value)
            assert (match.span() if kind(text) == "story" else match.span(4)) in spans
            count += 1
    assert count > 10_000


def test_equations_bare_answers_and_repeated_names_are_decided_and_nothing_else() -> None:
    def marked(text: str) -> list[str]:
        return [text[slice(*span)] for span in sorted(decided(text))]

    assert marked("39+12=51\n8/4=2") == ["51", "2"]
    assert marked("Tom has 9 pens. Mia has 3 pens. Together they have 9+3=12 pens.") == ["pens", "9+3=12", "pens"]
    assert marked("Question: Tom has 9 pens. How many pens does Tom have?\nAnswer: 9") == ["pens", "Tom", "9"]


def test_stories_stand_alone_side_by_side_and_chained(texts: list[str]) -> None:
    stories = [re.findall(r"(\d+)[-+*/](\d+)=(\d+)", text) for text in texts if kind(text) == "story"]
    chained = [equations for equations in stories if len(equations) > 1 and equations[0][2] in equations[1][:2]]
    assert {len(equations) for equations in stories} == {1, 2, 3}
    assert len(chained) > len(stories) / 4


def test_a_seed_gives_the_same_text_and_another_seed_another() -> None:
    first, again, other = (list(islice(documents(seed), 50)) for seed in (3, 3, 4))
    assert first == again != other
