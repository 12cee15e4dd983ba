"""A choice that may grow is judged and described as a Literal is."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ValidationError

from soka_cli.recipe.choices import OneOf

NAMES = ["red", "green"]


class Grown(BaseModel):
    colour: Annotated[str, OneOf(lambda: NAMES)]


class Fixed(BaseModel):
    colour: Literal["red", "green"]


@pytest.mark.parametrize("value", ["blue", 3, None, ["red"], {"red": 1}])
def test_a_mistake_is_a_literal_s(value: object) -> None:
    kinds = []
    for model in (Grown, Fixed):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({"colour": value})
        kinds.append([(one["type"], one["loc"]) for one in caught.value.errors()])
    assert kinds[0] == kinds[1] == [("literal_error", ("colour",))]


def test_the_json_schema_is_a_literal_s() -> None:
    assert Grown.model_json_schema()["properties"] == Fixed.model_json_schema()["properties"]


def test_a_name_that_comes_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.NAMES", [*NAMES, "blue"])
    assert Grown.model_validate({"colour": "blue"}).model_dump_json() == '{"colour":"blue"}'
