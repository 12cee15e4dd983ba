"""The JSON schema that editors read says what the loader says."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from soka_cli.recipe.json_schema import MODELINE, recipe_schema, schema_file
from soka_cli.recipe.options import sections
from soka_cli.recipe.places import packaged
from soka_cli.recipe.schema import RULE_READS, TASK_PROTOCOLS, AdapterSection

FOLDERS = (packaged("recipes"), *(packaged("configs") / name for name in ("ablations", "adapters", "models", "protocols")))
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*.yaml"))


def test_the_packaged_schema_is_the_one_that_the_recipe_s_options_make() -> None:
    assert json.loads(schema_file().read_text(encoding="utf-8")) == recipe_schema(), "soka recipes schema > configs/recipe.schema.json"


def test_every_option_is_there_with_its_sentence() -> None:
    schema = recipe_schema()
    for section in sections():
        known = schema if section.__name__ == "Recipe" else schema["$defs"][section.__name__]
        for name, field in section.model_fields.items():
            assert known["properties"][name].get("description") == field.description


def test_an_unknown_option_is_a_mistake_and_a_missing_one_is_not() -> None:
    schema = recipe_schema()
    assert schema["additionalProperties"] is False and schema["$defs"]["TrainSection"]["additionalProperties"] is False
    assert '"required":' not in json.dumps(schema)


def test_counts_take_suffixes_and_bounds_have_their_names() -> None:
    text = json.dumps(recipe_schema()["$defs"]["RankSection"]["properties"])
    assert '"string"' in json.dumps(recipe_schema()["$defs"]["RankSection"]["properties"]["parameters"])
    assert '"maximum": 1.0' in text and '"ge"' not in text and '"gt"' not in text


def test_the_choices_are_those_of_the_schema() -> None:
    sections = recipe_schema()["$defs"]
    assert set(sections["AdapterSection"]["properties"]["method"]["enum"]) == set(
        get_args(AdapterSection.model_fields["method"].annotation)
    )
    assert sections["RankSection"]["properties"]["rule"]["enum"] == list(RULE_READS)
    assert sections["EvalSection"]["properties"]["task"]["enum"] == list(TASK_PROTOCOLS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_packaged_file_names_the_schema_in_its_first_line(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(MODELINE)
    assert (path.parent / first.removeprefix(MODELINE)).resolve() == schema_file().resolve()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_packaged_file_s_options_are_in_the_schema(path: Path) -> None:
    schema = recipe_schema()

    def known(value: Any, part: dict[str, Any], at: str) -> None:
        """Walks mappings whose keys the schema names; what may have several forms is the loader's to judge."""
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if isinstance(value, dict) and "properties" in part:
            for key, inner in value.items():
                assert key in part["properties"], f"{at}.{key}"
                known(inner, part["properties"][key], f"{at}.{key}")

    known(yaml.safe_load(path.read_text(encoding="utf-8")), schema, path.stem)


def test_the_files_were_found() -> None:
    assert len(FILES) > 25
