"""A choice among names that are looked up when a recipe is read, since a program of one's own may have brought some along."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


@dataclass(frozen=True)
class OneOf:
    """Stands beside `str` where the names would stand in a Literal; mistakes and schemas are a Literal's.

    Attributes:
        names: gives the names that there are now, in the order in which messages list them.
    """

    names: Callable[[], Iterable[str]]

    def checked(self, value: Any) -> Any:
        names = list(self.names())
        if isinstance(value, str) and value in names:
            return value
        raise PydanticKnownError("literal_error", {"expected": ", ".join(f"'{name}'" for name in names)})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.checked, serialization=core_schema.to_string_ser_schema())

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.names()), "type": "string"}
