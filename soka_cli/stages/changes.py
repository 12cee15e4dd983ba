"""What training changed, as the report's figures: energy in the top terms, elbows, distances and angles."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from soka_cli.stages.decompose import kind_of

if TYPE_CHECKING:
    from torch import Tensor

    from soka_cli.stages.learnt import Learnt
    from soka_cli.stages.weight_spectra import BeforeAfter

SPECTRA = {"before": "weight before", "after": "weight after", "update": "learnt update"}
FACTORS = ("U", "V", "sigma")


def module_changes(learnt: "Mapping[str, Learnt]", weights: "Mapping[str, BeforeAfter]") -> list[dict[str, Any]]:
    """A row for each trained module.

        name, rank
        spectra    before, after (null without the base's weights), update: top_term and top_terms, the shares of the energy in the
                   first term and in the first `rank` terms; elbow, the terms before a fall to half or less, null without one
        moved      U, V, sigma: distance from the start as a share of the start's length
        angles     U, V: degrees between the spans of the terms and of their starts, descending

    Shares are null for a matrix of zeros.
    """
    rows = []
    for name, found in learnt.items():
        rank, sides = found.now.rank, weights.get(name)
        movement = found.movement
        rows.append(
            {
                "name": name,
                "rank": rank,
                "spectra": {
                    "before": None if sides is None else spectrum_figures(sides.before.sigma, sides.before.energy, rank),
                    "after": None if sides is None else spectrum_figures(sides.after.sigma, sides.after.energy, rank),
                    "update": spectrum_figures(found.update, float(found.update.square().sum()), rank),
                },
                "moved": {factor: movement[factor].distance for factor in FACTORS},
                "angles": {factor: list(angles) for factor in FACTORS if (angles := movement[factor].angles) is not None},
            }
        )
    return rows


def spectrum_figures(sigma: "Tensor", energy: float, rank: int) -> dict[str, Any]:
    from soka_cli.kron import clear_elbow

    shares = (sigma.square() / energy).tolist() if energy else []
    return {
        "top_term": min(1.0, shares[0]) if shares else None,
        "top_terms": min(1.0, sum(shares[:rank])) if shares else None,
        "elbow": clear_elbow(sigma),
    }


def spectra_rows(modules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of module and spectrum: the median shares over its modules, and how many have an elbow."""
    rows = []
    for kind, members in by_kind(modules).items():
        for side, words in SPECTRA.items():
            found = [one["spectra"][side] for one in members if one["spectra"][side] is not None]
            if not found:
                continue
            elbows = [one["elbow"] for one in found if one["elbow"] is not None]
            rows.append(
                {
                    "modules": kind,
                    "spectrum of": words,
                    "in the first term": middle([one["top_term"] for one in found]),
                    "in as many terms as were kept": middle([one["top_terms"] for one in found]),
                    "with an elbow": f"{len(elbows)} of {len(found)}" + (f", after term {spread(elbows)}" if elbows else ""),
                }
            )
    return rows


def movement_rows(modules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of module: medians of the distances, the median of all angles and the largest one, in degrees."""
    rows = []
    for kind, members in by_kind(modules).items():
        row: dict[str, Any] = {"modules": kind}
        row |= {f"{factor} moved": middle([one["moved"][factor] for one in members]) for factor in FACTORS}
        for factor in ("U", "V"):
            angles = [angle for one in members for angle in one["angles"][factor]]
            row[f"{factor} angles"] = f"{median(angles):.3g}°, at most {max(angles):.3g}°" if angles else None
        rows.append(row)
    return rows


def by_kind(modules: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Modules by the last word of their names, then all of them where there are several kinds."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for one in modules:
        kinds.setdefault(kind_of(dict(one)), []).append(one)
    return kinds | ({"all": list(modules)} if len(kinds) > 1 else {})


def middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def spread(numbers: Sequence[int]) -> str:
    """`3`, `1 to 4`."""
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
