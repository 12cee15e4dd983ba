"""The recipe's options as a JSON schema, so that editors complete and check them."""

import os
from pathlib import Path
from typing import Any

from soka_cli.recipe.places import packaged
from soka_cli.recipe.schema import Recipe

FILE_NAME = "recipe.schema.json"
MODELINE = "# yaml-language-server: $schema="
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_file() -> Path:
    """The schema that comes with the package; a test holds it to what `recipe_schema` says."""
    return packaged("configs") / FILE_NAME


def recipe_schema() -> dict[str, Any]:
    """What a recipe file may hold: the options, with their sentences and defaults, and what the loader itself reads.

    Nothing is required, since a fragment may give it; `soka recipes validate` says what is missing.
    """
    schema: dict[str, Any] = optional(Recipe.model_json_schema(mode="validation"))
    names: dict[str, Any] = {"type": "string", "minLength": 1}
    extends = {
        "anyOf": [names, {"type": "array", "items": names}],
        "description": "Fragments or recipes that this one is laid over: files beside it, or packaged names such as models/llama2-7b.",
    }
    protocol = {"type": "object", "description": "In a packaged protocol alone: what its name stands for."}
    properties = {"extends": extends, "protocol": protocol, **schema["properties"]}
    return {"$schema": DIALECT, **schema, "title": "soka recipe", "properties": properties}


def optional(part: Any) -> Any:
    """The schema without its lists of what is required, with bounds by JSON schema's names."""
    if isinstance(part, dict):
        kept = {key: value for key, value in part.items() if key != "required" or not isinstance(value, list)}
        return {BOUNDS.get(key, key) if isinstance(value, int | float) else key: optional(value) for key, value in kept.items()}
    return [optional(value) for value in part] if isinstance(part, list) else part


def modeline(schema: Path, folder: Path) -> str:
    """The comment by which the YAML language server finds the schema, for a recipe in `folder`."""
    return f"{MODELINE}{Path(os.path.relpath(schema, folder)).as_posix()}"
