"""Recipe -> mapping or YAML that loads back equal."""

from typing import Any

import yaml

from soka_cli.recipe.schema import INIT_READS, RANKED, RULE_READS, AdapterSection, RankSection, Recipe, Section, adapter_reads


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain values: defaults spelt out; nulls and what the method does not read left out."""
    mapping = section_mapping(recipe)
    adapter = recipe.adapter
    ranked = adapter.method in RANKED or adapter.match_parameters is not None
    if ranked and adapter.match_parameters != "soka" and "rank" in mapping["adapter"]:
        del mapping["adapter"]["rank"]["spectrum"]
    return mapping


def section_mapping(section: Section) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name in fields_read(section):
        value = plain(getattr(section, name))
        if value is not None and value != {}:
            mapping[name] = value
    return mapping


def fields_read(section: Section) -> list[str]:
    """The section's fields, without those that its method, rule or init does not read."""
    names = list(type(section).model_fields)
    if isinstance(section, AdapterSection):
        unread = {name for reads in INIT_READS.values() for name in reads} - set(INIT_READS[section.init])
        return [name for name in names if name == "method" or (name in adapter_reads(section) and name not in unread)]
    if isinstance(section, RankSection):
        return [name for name in names if name == "rule" or name in RULE_READS[section.rule]]
    return names


def plain(value: Any) -> Any:
    if isinstance(value, Section):
        return section_mapping(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML text, in the schema's order."""
    return yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True, width=120)
