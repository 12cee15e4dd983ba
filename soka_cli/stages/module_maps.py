"""Ranks and energy of all modules as layers x modules."""

import re
from collections.abc import Mapping, Sequence

from soka_cli.stages.findings import ModuleRow
from soka_cli.stages.plots import Plot, module_map

LAYER = re.compile(r"\.(\d+)\.")
OUTSIDE = "outside the layers"


def module_maps(modules: Sequence[ModuleRow]) -> list[Plot]:
    """The kept terms, and the share of the energy that they hold; nothing for a run without a decomposition."""
    if not modules:
        return []
    ranks = cells(modules, {module.name: float(module.rank) for module in modules})
    energy = cells(modules, {module.name: 100 * module.energy_kept for module in modules})
    return [
        module_map("map-ranks", "Terms kept", ranks, alt=f"Terms kept by layer and module: {told(ranks, '')}."),
        module_map("map-energy", "Energy kept, %", energy, alt=f"Share of the energy kept by layer and module: {told(energy, '%')}."),
    ]


def cells(modules: Sequence[ModuleRow], values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By layer, then by the module's name within it; modules of no layer stand in a row of their own."""
    table: dict[str, dict[str, float]] = {}
    for module in modules:
        found = LAYER.search(module.name)
        column = module.name[found.end() :] if found else module.name
        table.setdefault(found[1] if found else OUTSIDE, {})[column] = values[module.name]
    return table


def told(table: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """`q_proj 2 to 4 (least in layer 0, most in layer 2)` for each kind of module."""
    said = []
    for column in dict.fromkeys(column for row in table.values() for column in row):
        found = {layer: row[column] for layer, row in table.items() if column in row}
        least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        kind = column.rpartition(".")[2]
        if found[least] == found[most]:
            said.append(f"{kind} {found[least]:.3g}{unit}")
        else:
            said.append(f"{kind} {found[least]:.3g}{unit} (layer {least}) to {found[most]:.3g}{unit} (layer {most})")
    return ", ".join(said)
