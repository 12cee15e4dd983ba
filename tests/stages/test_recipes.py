from pathlib import Path

import pytest
import yaml

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.json_schema import MODELINE, schema_file
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import packaged_recipes
from soka_cli.recipe.resolved import to_mapping
from soka_cli.stages.recipes import copy_recipe, description, list_recipes, show_recipe, validate_recipes
from tests import builders


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
    path.write_text("# yaml-language-server: $schema=x.json\n# For people.\n")
    assert description(path) == "For people."
    path.write_text("seed: 0 # no description\n")
    assert description(path) == ""


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_shown_recipe_is_whole_and_loads_back_equal(name: str, tmp_path: Path) -> None:
    outcome = show_recipe(name)
    (tmp_path / "shown.yaml").write_text(outcome.text)
    assert load_recipe(tmp_path / "shown.yaml").recipe == load_recipe(name).recipe
    assert yaml.safe_load(outcome.text) == outcome.figures["recipe"] == to_mapping(load_recipe(name).recipe)


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_copied_recipe_means_the_same_in_another_folder(name: str, tmp_path: Path) -> None:
    outcome = copy_recipe(name, tmp_path)
    copied = tmp_path / f"{Path(name).name}.yaml"
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


def test_each_value_is_shown_beside_the_place_that_set_it() -> None:
    outcome = show_recipe("gsm8k", ["train.lr=1e-3"])
    lines = {line.split(":")[0].strip(" -"): line.partition("# ")[2] for line in outcome.text.splitlines()}
    assert lines["lr"] == "override train.lr=1e-3"
    assert lines["parameters"].startswith("configs/adapters/soka-qv.yaml:") or "adapters/soka-qv.yaml:" in lines["parameters"]
    assert (lines["log_every"], lines["rank"]) == ("default", "")
    assert outcome.figures["origins"]["train.lr"] == "override train.lr=1e-3"


def test_a_text_of_several_lines_is_shown_and_loads_back_equal(tmp_path: Path, gsm8k_file: Path) -> None:
    filters = {"data": {"train": {"path": str(gsm8k_file), "task": "gsm8k", "filter": {"a: #b": "two\nlines", "c": "x # y"}}}}
    path = builders.write_recipe(tmp_path / "odd.yaml", builders.recipe_mapping("m", gsm8k_file) | filters)
    assert yaml.safe_load(show_recipe(str(path)).text) == to_mapping(load_recipe(path).recipe)


def test_a_copied_recipe_s_schema_line_names_a_file_that_is_there(tmp_path: Path) -> None:
    copy_recipe("gsm8k", tmp_path)
    first = (tmp_path / "gsm8k.yaml").read_text().splitlines()[0]
    assert (tmp_path / first.removeprefix(MODELINE)).read_text() == schema_file().read_text()


def test_all_mistakes_of_all_recipes_are_said_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: [gsm8k]\ntrain: {{lr_{name}: 1}}\n")
    with pytest.raises(SokaError) as caught:
        validate_recipes([str(tmp_path / "one.yaml"), "demo", str(tmp_path / "two.yaml")])
    assert caught.value.exit_code == ExitCode.USAGE
    assert "lr_one" in caught.value.why and "lr_two" in caught.value.why and "2 of 3" in caught.value.what


def test_without_a_name_every_packaged_recipe_is_validated() -> None:
    assert validate_recipes([]).figures["valid"] == packaged_recipes()
