"""The solved items in front of a question."""

import json
from itertools import islice
from random import Random
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.places import packaged
from soka_cli.tasks.few_shot import shots_for
from soka_cli.tasks.protocol import protocol_named
from tests.builders import gsm8k_rows, shared_folder

DRAWN = protocol_named("lm-eval", "gsm8k")
PICKED = protocol_named("lm-eval-minerva", "math")


def math_rows() -> list[dict[str, Any]]:
    path = shared_folder("data", "math", "train.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_item_gets_its_own_draw_and_the_same_in_each_run() -> None:
    rows = gsm8k_rows(50)
    first, again = (list(islice(shots_for(DRAWN, rows), 4)) for _ in range(2))
    assert first == again
    assert len({json.dumps(shots) for shots in first}) == 4
    assert all(len({shot["question"] for shot in shots}) == 5 for shots in first)


def test_draws_are_those_of_the_harnesses_generator() -> None:
    rows, generator = gsm8k_rows(50), Random(1234)
    wanted = [[rows[place] for place in generator.sample(range(50), 5)] for _ in range(3)]
    assert list(islice(shots_for(DRAWN, rows), 3)) == wanted


def test_an_items_shots_depend_on_its_place_and_the_rows_order() -> None:
    rows = gsm8k_rows(50)
    assert next(shots_for(DRAWN, rows)) != next(shots_for(DRAWN, rows[::-1]))


def test_too_few_rows_are_a_data_error() -> None:
    with pytest.raises(SokaError) as caught:
        shots_for(DRAWN, gsm8k_rows(4))
    assert caught.value.exit_code == ExitCode.DATA


def test_a_protocol_without_shots_shows_none() -> None:
    assert list(islice(shots_for(protocol_named("plain", "gsm8k"), None), 2)) == [(), ()]


@pytest.mark.parametrize(("name", "task", "count"), [("lm-eval-cot", "gsm8k", 8), ("lm-eval", "mbpp", 3)])
def test_packaged_shots_are_whole(name: str, task: str, count: int) -> None:
    protocol = protocol_named(name, task)
    shots = next(shots_for(protocol, None))
    assert len(shots) == count
    prompt, target = protocol.template.render(shots[0])  # type: ignore[union-attr]
    assert prompt and target


def test_minervas_problems_are_found_in_the_users_rows_whatever_their_order() -> None:
    rows = math_rows()
    shots = next(shots_for(PICKED, rows))
    assert next(shots_for(PICKED, rows[::-1])) == shots
    assert len(shots) == 4
    assert [shot["solution"].rsplit("answer is ", 1)[1] for shot in shots] == [
        f"${answer}$. I hope it is correct." for answer in ("[2,5)", "24", "16", r"-\frac{2}{3}")
    ]
    assert "  $" in shots[0]["problem"]  # two spaces, as the prompt prints them and the data set does not


def test_rows_without_minervas_problems_are_a_data_error() -> None:
    with pytest.raises(SokaError) as caught:
        shots_for(PICKED, [{"problem": "How many?", "solution": "$\\boxed{2}$"}])
    assert caught.value.exit_code == ExitCode.DATA


def test_no_file_of_the_package_carries_a_problem_of_math() -> None:
    folder = packaged("configs") / "protocols"
    text = " ".join("".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()).split())
    for shot in next(shots_for(PICKED, math_rows())):
        assert " ".join(shot["problem"].split())[:40] not in text


def test_the_harnesss_licence_lies_beside_its_texts() -> None:
    folder = packaged("configs") / "protocols" / "harness"
    assert "EleutherAI" in (folder / "LICENSE").read_text(encoding="utf-8")
    named = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in folder.iterdir() if path.name not in named] == ["README.md"]
