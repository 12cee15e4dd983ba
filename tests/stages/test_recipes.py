from pathlib import Path

import pytest
import yaml

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import packaged_recipes
from soka_cli.recipe.resolved import to_mapping
from soka_cli.stages.recipes import copy_recipe, description, list_recipes, show_recipe


def test_every_packaged_recipe_is_listed_with_its_own_description() -> None:
    listed = list_recipes().figures["recipes"]
    assert [one["name"] for one in listed] == packaged_recipes()
    assert {"demo", "gsm8k", "math", "mbpp"} <= {one["name"] for one in listed}
    assert all(one["description"] and not one["description"].startswith("soka ") for one in listed)
    assert len({one["description"] for one in listed}) == len(listed)


def test_the_description_is_the_first_comment_line_that_says_something(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\n#\n#  What it is.\n# More.\nseed: 0\n")
    assert description(path) == "What it is."
    path.write_text("seed: 0 # no description\n")
    assert description(path) == ""


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_shown_recipe_is_whole_and_loads_back_equal(name: str, tmp_path: Path) -> None:
    outcome = show_recipe(name)
    (tmp_path / "shown.yaml").write_text(outcome.notes[0])
    assert load_recipe(tmp_path / "shown.yaml").recipe == load_recipe(name).recipe
    assert yaml.safe_load(outcome.notes[0]) == outcome.figures["recipe"] == to_mapping(load_recipe(name).recipe)


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_copied_recipe_means_the_same_in_another_folder(name: str, tmp_path: Path) -> None:
    outcome = copy_recipe(name, tmp_path)
    copied = tmp_path / f"{name}.yaml"
    assert outcome.figures["copied"] == str(copied)
    assert load_recipe(copied).recipe == load_recipe(name).recipe


def test_a_file_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.yaml").write_text("mine")
    with pytest.raises(SokaError) as caught:
        copy_recipe("gsm8k", tmp_path)
    assert caught.value.exit_code == ExitCode.USAGE and caught.value.hint
    assert (tmp_path / "gsm8k.yaml").read_text() == "mine"


@pytest.mark.parametrize("action", [show_recipe, copy_recipe])
def test_an_unknown_name_is_exit_2_with_those_there_are(action: object) -> None:
    with pytest.raises(SokaError) as caught:
        action("gsm9k")  # type: ignore[operator]
    assert caught.value.exit_code == ExitCode.USAGE
    assert "gsm8k" in str(caught.value)
