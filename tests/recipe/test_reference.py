"""docs/recipe.md says what the schema says."""

import pytest

from soka_cli.recipe.options import sections
from soka_cli.recipe.reference import escaped, places, reference
from soka_cli.recipe.schema import EvalSection, ModelSection
from tests.builders import REPOSITORY


def test_the_page_is_what_the_schema_makes() -> None:
    assert (REPOSITORY / "docs" / "recipe.md").read_text(encoding="utf8") == f"{reference()}", "make docs"


def test_every_option_of_every_section_has_its_row() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    for section in sections():
        for name, field in section.model_fields.items():
            assert any(row.startswith(f"| `{name}` |") and escaped(str(field.description)) in row for row in rows), f"{section}.{name}"
    assert len(rows) > 100


def test_every_section_stands_in_one_place() -> None:
    placed = [section for kinds in places().values() for section in kinds]
    assert set(placed) == set(sections()) and len(placed) == len(set(placed))


@pytest.mark.parametrize(("section", "name"), [(ModelSection, "dtype"), (EvalSection, "limit")])
def test_an_option_without_a_description_is_refused(section: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section.model_fields[name], "description", None)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"option {name} of section {section.__name__} has no description"):
        reference()


def test_a_row_says_what_an_option_takes_its_default_and_who_reads_it() -> None:
    page = reference()
    assert "| `tau` | number, above 0, at most 1 | `0.9` |" in page and "*Read by rule min, energy.*" in page
    assert "| `gpu` | size, 1 or more | `null` |" in page
    assert "| `name` | text | required | Hub id or folder" in page
    assert "| `rank` | [adapter.rank](#adapterrank) | as below |" in page
    assert "*Read by init early-update.*" in page and "*Read by method lora, pissa, dora.*" in page
