"""What training changed: spectra of the learnt update and of the trained terms, and how far the factors moved, from the adapter's file
alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from soka_cli.kron import KronFactors, principal_angles, term_spectrum, update_terms
from soka_cli.run.write import damaged

if TYPE_CHECKING:
    from soka_cli.stages.weight_spectra import BeforeAfter

PREFIX = "base_model.model."  # PEFT's, in front of the module's name in the transformers model
# the adapter layer's names, repeated because reading them there costs seconds of imports; a test compares the two
TRAINED = ("soka_U", "soka_V", "soka_sigma")
START = ("soka_start_U", "soka_start_V", "soka_start_sigma")


@dataclass(frozen=True)
class Movement:
    """How far one factor is from its start.

    Args:
        distance: ||X - X0||_F / ||X0||_F over all terms.
        angles: degrees between the spans of its terms and of their starts, descending; None for sigma.
    """

    distance: float
    angles: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Learnt:
    """One module after training, as singular values of rearranged matrices, fp64, descending.

    Args:
        update: of K(theta) - K(theta0), what is added to the weight.
        trained: of K(theta).
        start: of K(theta0), the terms that training began with.
        now: the trained terms themselves.
        begun: those of the start.
    """

    update: Tensor
    trained: Tensor
    start: Tensor
    now: KronFactors
    begun: KronFactors

    @property
    def movement(self) -> dict[str, Movement]:
        """By factor: U, V, sigma."""
        return {
            "U": _moved(self.now.left, self.begun.left, spans=True),
            "V": _moved(self.now.right, self.begun.right, spans=True),
            "sigma": _moved(self.now.sigma, self.begun.sigma),
        }

    @property
    def update_norm(self) -> float:
        """||K(theta) - K(theta0)||_F."""
        return float(self.update.norm())


def read_learnt(path: Path) -> dict[str, Learnt]:
    """Per module of a SoKA adapter file; empty for an adapter of another method.

    Raises:
        SokaError: exit 5, the file is damaged or lacks a part of a module.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            names = list(handle.keys())
            modules = [name.removesuffix(f".{TRAINED[0]}") for name in names if name.endswith(f".{TRAINED[0]}")]
            return {
                module.removeprefix(PREFIX): _learnt(*(_terms(handle, module, parts) for parts in (TRAINED, START))) for module in modules
            }
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def spectra_tensors(learnt: dict[str, Learnt], weights: "Mapping[str, BeforeAfter]") -> dict[str, Tensor]:
    """report/spectra.safetensors: `<module>.update`, `<module>.trained`, `<module>.start`, and of the weights where they were read
    `<module>.weight_before`, `<module>.weight_after`."""
    tensors: dict[str, Tensor] = {}
    for module, found in learnt.items():
        tensors |= {f"{module}.update": found.update, f"{module}.trained": found.trained, f"{module}.start": found.start}
    for module, sides in weights.items():
        tensors |= {f"{module}.weight_before": sides.before.sigma, f"{module}.weight_after": sides.after.sigma}
    return {name: spectrum.contiguous() for name, spectrum in tensors.items()}


def _terms(handle: safe_open, module: str, parts: tuple[str, str, str]) -> KronFactors:
    left, right, sigma = (handle.get_tensor(f"{module}.{part}").to(torch.float64) for part in parts)
    return KronFactors(left, right, sigma)


def _learnt(now: KronFactors, start: KronFactors) -> Learnt:
    return Learnt(term_spectrum(update_terms(now, start)), term_spectrum(now), term_spectrum(start), now, start)


def _moved(now: Tensor, start: Tensor, *, spans: bool = False) -> Movement:
    norm = float(start.norm())
    distance = float((now - start).norm()) / norm if norm else 0.0
    return Movement(distance, tuple(principal_angles(now, start).rad2deg().tolist()) if spans else None)
