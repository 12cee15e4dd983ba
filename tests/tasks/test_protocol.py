"""Ways of asking, and the words that they use."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import packaged
from soka_cli.recipe.schema import SHOWS_ROWS, TASK_PROTOCOLS
from soka_cli.tasks.base import Example, cut_at, task_named
from soka_cli.tasks.competition_math import CompetitionMath
from soka_cli.tasks.few_shot import shots_for
from soka_cli.tasks.gsm8k import Gsm8k
from soka_cli.tasks.protocol import COMMON_STOPS, AskingProtocol, protocol_named, stops_of, template_digest
from soka_cli.tasks.template import Words, render, render_example
from tests import builders

EXAMPLE = Gsm8k().example({"question": "How many?", "answer": "Two.\n#### 2"}, 0)
PROBLEM = CompetitionMath().example({"problem": "How many?", "solution": "It is $\\boxed{2}$."}, 0)
PAIRS = [(task, name) for task, names in TASK_PROTOCOLS.items() for name in names]
FOLDER = packaged("configs") / "protocols"


def test_every_protocol_is_a_file_and_every_file_a_protocol() -> None:
    assert sorted(f"{name}-{task}" for task, name in PAIRS) == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert len(PAIRS) >= 18


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_a_file_names_itself_in_the_entry_that_recipes_extend(task: str, name: str) -> None:
    content = yaml.safe_load((FOLDER / f"{name}-{task}.yaml").read_text(encoding="utf-8"))
    assert [(entry["task"], entry["protocol"]) for entry in content["eval"]] == [(task, name)]
    assert set(content["protocol"]) >= {"template", "stops", "max_new_tokens", "decoding", "reference"}
    protocol = protocol_named(name, task)
    assert (protocol.name, protocol.task) == (name, task)
    assert protocol.needs_rows == ((task, name) in SHOWS_ROWS)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_a_recipe_extends_a_protocol_and_its_definition_stays_out(task: str, name: str, tmp_path: Path) -> None:
    mapping = builders.recipe_mapping("acme/model", "acme/data") | {"extends": [f"protocols/{name}-{task}"]}
    mapping["data"] = {"train": mapping["data"]["train"]}
    recipe = load_recipe(builders.write_recipe(tmp_path / "r.yaml", mapping)).recipe
    assert (recipe.eval[0].task, recipe.eval[0].protocol, recipe.eval[0].max_new_tokens) == (task, name, None)


def test_a_recipe_of_ones_own_defines_no_protocol(tmp_path: Path) -> None:
    mapping = builders.recipe_mapping("acme/model", "acme/data") | {"protocol": {"stops": []}}
    with pytest.raises(SokaError) as caught:
        load_recipe(builders.write_recipe(tmp_path / "r.yaml", mapping))
    assert "protocol" in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"task": "gsm8k", "protocol": "lm-eval-minerva"}, "task gsm8k has no protocol lm-eval-minerva; write plain or pissa"),
        ({"task": "math", "protocol": "lm-eval-cot"}, "task math has no protocol lm-eval-cot"),
        ({"task": "gsm8k", "protocol": "plain", "shots": {"path": "x.jsonl"}}, "shows no training rows; drop shots"),
        ({"task": "gsm8k", "protocol": "lm-eval", "shots": {"revision": "abc"}}, "revision belong to a path"),
    ],
)
def test_a_protocol_that_a_task_lacks_is_a_recipes_mistake(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    mapping = builders.recipe_mapping("acme/model", "acme/data", eval=[entry | {"path": "acme/test"}])
    with pytest.raises(SokaError) as caught:
        load_recipe(builders.write_recipe(tmp_path / "r.yaml", mapping))
    assert said in str(caught.value)


def test_readings_are_of_the_task() -> None:
    for task, name in PAIRS:
        if task in ("gsm8k", "math"):
            assert set(protocol_named(name, task).readings) <= set(task_named(task).readings)


def test_plain_asks_in_the_data_sets_own_form() -> None:
    prompt, target = protocol_named("plain", "gsm8k").render(EXAMPLE)
    assert prompt + target == "Question: How many?\nAnswer: Two.\n#### 2"
    prompt, target = protocol_named("plain", "math").render(PROBLEM)
    assert prompt + target == "Problem:\nHow many?\n\nSolution:\nIt is $\\boxed{2}$."


@pytest.mark.parametrize(("task", "example"), [("gsm8k", EXAMPLE), ("math", PROBLEM)])
def test_pissa_asks_with_the_training_template_and_no_cue(task: str, example: Example) -> None:
    protocol = protocol_named("pissa", task)
    prompt, target = protocol.render(example)
    assert prompt.endswith("\n\n### Instruction:\nHow many?\n\n### Response:")
    assert (prompt, target) == render_example("alpaca", example)
    assert (protocol.stops, protocol.max_new_tokens) == ((), 1024)
    assert "not public" in protocol.reference


@pytest.mark.parametrize(("task", "example", "longest"), [("gsm8k", EXAMPLE, 512), ("math", PROBLEM, 2048)])
def test_metamath_adds_its_cue_and_its_stop_strings(task: str, example: Example, longest: int) -> None:
    protocol = protocol_named("metamath", task)
    assert protocol.render(example)[0] == protocol_named("pissa", task).render(example)[0] + " Let's think step by step."
    assert {"Question", "Response"} <= set(protocol.stops)
    assert protocol.max_new_tokens == longest


def test_shots_stand_before_the_question_with_an_empty_line_behind_each() -> None:
    protocol = protocol_named("lm-eval-cot", "gsm8k")
    prompt = protocol.prompt(EXAMPLE, next(shots_for(protocol, None)))
    assert prompt.startswith("Q: There are 15 trees")
    assert prompt.count("Q: ") == 9
    assert prompt.endswith(" The answer is 8.\n\nQ: How many?\nA:")


def test_columns_without_a_task_stay_as_they_are_under_plain() -> None:
    assert render_example("plain", Example(id="0", prompt="a", target="b", gold="")) == render("plain", "a", "b") == ("a", "b")


def test_braces_in_a_question_are_words_like_others() -> None:
    assert "{target} {prompt} {0}" in render("alpaca", "{target} {prompt} {0}", "")[0]
    words = Words(prompt="Q: {question}", target="{tests[1]}")
    assert words.render({"question": "{answer} {0}", "tests": ["a", "{b}"]}) == ("Q: {answer} {0}", "{b}")


def test_a_stripped_prompt_ends_in_one_line_break() -> None:
    assert Words(prompt="{prompt}", stripped=True).render({"prompt": "\n\ndef f():\n  "}) == ("def f():\n", "")


def test_template_digests_tell_words_apart() -> None:
    names = ("plain", "pissa", "metamath", "lm-eval-cot")
    assert len({template_digest(Gsm8k(), protocol_named(name, "gsm8k")) for name in names}) == len(names)
    plain, shown = (template_digest(Gsm8k(), protocol_named(name, "gsm8k")) for name in ("plain", "lm-eval"))
    assert plain == shown  # the same words; shots are in the protocol's own digest


def test_a_protocols_digest_covers_all_that_it_says_but_its_reference() -> None:
    digests = {protocol_named(name, task).sha256 for task, name in PAIRS}
    assert len(digests) == len(PAIRS)
    known = protocol_named("lm-eval-cot", "gsm8k")
    assert known.model_copy(update={"reference": "other"}).sha256 == known.sha256
    for change in ({"stops": ()}, {"cue": "x"}, {"max_new_tokens": 1}, {"readings": ()}, {"shots": None}, {"template": "plain"}):
        assert known.model_copy(update=change).sha256 != known.sha256


def test_a_definition_says_nothing_that_is_not_known() -> None:
    said = protocol_named("plain", "gsm8k").model_dump()
    for wrong in ({"temperature": 1}, {"decoding": "beam"}, {"postprocessing": "magic"}, {"stops": "Question:"}, {"max_new_tokens": 0}):
        with pytest.raises(ValidationError):
            AskingProtocol.model_validate(said | wrong)


def test_the_documentation_names_every_protocol_and_metric() -> None:
    text = (builders.REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for task, name in PAIRS:
        assert f"| `{name}` |" in text
        assert all(f"`{metric}`" in text for metric in protocol_named(name, task).readings)
    assert all(f"`{metric}`" in text for task in ("gsm8k", "math") for metric in task_named(task).metrics)


def test_an_unknown_protocol_or_template_is_refused() -> None:
    for attempt in (
        lambda: protocol_named("fancy", "gsm8k"),
        lambda: protocol_named("lm-eval-cot", "math"),
        lambda: render("chat", "a", "b"),
    ):
        with pytest.raises(SokaError) as caught:
            attempt()
        assert caught.value.exit_code == ExitCode.USAGE


def test_text_is_cut_at_the_earliest_stop_string() -> None:
    assert cut_at("2 </s> 3 Question: 4", COMMON_STOPS) == ("2 ", True)
    assert cut_at("2 3", COMMON_STOPS) == ("2 3", False)
    assert cut_at("2 Question:", stops_of("pissa", "gsm8k")) == ("2 Question:", False)

    assert stops_of(None, "gsm8k") == COMMON_STOPS
