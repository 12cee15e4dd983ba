"""What training changed: spectra of the learnt update and of the trained terms, from the adapter's file alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from soka_cli.kron import KronFactors, term_spectrum, update_terms
from soka_cli.run.write import damaged

PREFIX = "base_model.model."  # PEFT's, in front of the module's name in the transformers model
# the adapter layer's names, repeated because reading them there costs seconds of imports; a test compares the two
TRAINED = ("soka_U", "soka_V", "soka_sigma")
START = ("soka_start_U", "soka_start_V", "soka_start_sigma")


@dataclass(frozen=True)
class Learnt:
    """One module after training, as singular values of rearranged matrices, fp64, descending.

    Args:
        update: of K(theta) - K(theta0), what is added to the weight.
        trained: of K(theta).
        start: of K(theta0), the terms that training began with.
    """

    update: Tensor
    trained: Tensor
    start: Tensor

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


def spectra_tensors(learnt: dict[str, Learnt]) -> dict[str, Tensor]:
    """`<module>.update`, `<module>.trained`, `<module>.start` for report/spectra.safetensors."""
    return {
        f"{module}.{name}": spectrum.contiguous()
        for module, found in learnt.items()
        for name, spectrum in (("update", found.update), ("trained", found.trained), ("start", found.start))
    }


def _terms(handle: safe_open, module: str, parts: tuple[str, str, str]) -> KronFactors:
    left, right, sigma = (handle.get_tensor(f"{module}.{part}").to(torch.float64) for part in parts)
    return KronFactors(left, right, sigma)


def _learnt(now: KronFactors, start: KronFactors) -> Learnt:
    return Learnt(term_spectrum(update_terms(now, start)), term_spectrum(now), term_spectrum(start))
