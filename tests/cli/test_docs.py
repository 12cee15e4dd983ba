"""What the pages say works: recipes load, commands and options exist, links lead somewhere, the picture can be read."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from soka_cli.cli.commands import app
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.places import packaged_recipes
from tests.builders import REPOSITORY
from tests.pages import PAGES, files, page, soka_commands

COMMANDS = [(path.name, words) for path in PAGES for words in soka_commands(path)]
RECIPES = {
    (name, file): text
    for name in ("cookbook.md", "extending.md")
    for file, text in files(page(name)).items()
    if file.endswith(".yaml") and file != "capitals.yaml"  # which is one for its own program (test_extending.py)
}
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
PICTURE = page("concepts.svg")


@pytest.mark.parametrize(("name", "file"), RECIPES)
def test_a_page_s_recipe_loads(name: str, file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(RECIPES[name, file])
    load_recipe(file, folder=tmp_path)


def test_the_cookbook_s_recipes_and_the_pages_commands_were_found() -> None:
    assert len(RECIPES) >= 9 and len(COMMANDS) > 80
    assert {name for name, _ in COMMANDS} >= {"README.md", "cookbook.md", "extending.md", "evaluation.md", "sweep.md", "processes.md"}


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60])
def test_a_page_s_command_has_a_verb_and_options_that_there_are(name: str, words: list[str], tmp_path: Path) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    with verbs[words[0]].make_context(words[0], list(words[1:])) as context:
        recipe, overrides = context.params.get("recipe"), context.params.get("overrides") or ()
    for file, text in files(REPOSITORY / name if name == "README.md" else page(name)).items():
        (tmp_path / file).write_text(text)
    known = recipe and (recipe.removesuffix(".yaml") in packaged_recipes() or (tmp_path / recipe).is_file())
    if known and recipe != "capitals.yaml" and "near-first" not in " ".join(overrides):  # of programs of their own
        load_recipe(recipe, overrides, folder=tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_s_links_lead_to_files_and_headings(path: Path) -> None:
    for target in (one or other for one, other in LINK.findall(path.read_text(encoding="utf8"))):
        if target.startswith(("http://", "https://")):
            continue
        file, _, heading = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not heading or heading in anchors(there), target


def anchors(path: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_page_is_linked_to_from_another(path: Path) -> None:
    others = (REPOSITORY / "CHANGELOG.md", *(other for other in PAGES if other != path))
    assert any(path.name in other.read_text(encoding="utf8") for other in others) or path.name == "README.md"


# ---- the picture


def test_the_picture_says_in_words_what_it_shows_and_asks_for_nothing() -> None:
    text = PICTURE.read_text(encoding="utf8")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img" and root.findtext(f"{space}title") and len(root.findtext(f"{space}desc") or "") > 200
    assert "<script" not in text and "url(http" not in text and not re.search(r'href="(?!#)', text)
    assert len(re.search(r'<img src="concepts.svg"[^>]*alt="([^"]*)"', page("concepts.md").read_text(encoding="utf8"))[1]) > 200  # type: ignore[index]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_s_words_stand_out_of_its_ground(scheme: str) -> None:
    light, _, dark = PICTURE.read_text(encoding="utf8").partition("@media (prefers-color-scheme: dark)")
    colours = fills(light) | (fills(dark) if scheme == "dark" else {})
    for name in ("name", "text", "sign"):
        assert contrast(colours[name], colours["page"]) >= 4.5  # WCAG 2.2, level AA
    for name in ("kept", "own"):
        assert contrast(colours[name], colours["page"]) >= 3.0


def fills(style: str) -> dict[str, str]:
    """The fill of each class."""
    rules = re.findall(r"((?:\.\w+,? ?)+)\{[^}]*?fill: (#\w{6})", style)
    return {name.strip(" ."): colour for names, colour in rules for name in names.split(",")}


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
