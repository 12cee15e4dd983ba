"""Spectra of the target weights before and after training, both rearranged as the decomposition rearranged them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from soka_cli.kron import KronFactors, kron_dense, leading_triplets, module_seed, rearrange, update_terms
from soka_cli.models.device import pick_device
from soka_cli.stages.adapter_file import PLAIN_KINDS
from soka_cli.stages.context import StageContext

if TYPE_CHECKING:
    from soka_cli.models.checkpoint import Checkpoint

SAME = 1e-5  # relative difference of two sums of squares of one and the same weight


class Changed(Protocol):
    """A module's terms, and those of its start."""

    @property
    def now(self) -> KronFactors: ...
    @property
    def begun(self) -> KronFactors: ...


@dataclass(frozen=True)
class WeightSpectrum:
    """Leading singular values of one rearranged weight.

    Args:
        sigma: [k] fp64, descending.
        energy: ||W||_F^2, all singular values' squares.
    """

    sigma: Tensor
    energy: float


@dataclass(frozen=True)
class BeforeAfter:
    """One target weight: the base's, and W + K(theta) - K(theta0)."""

    before: WeightSpectrum
    after: WeightSpectrum


def weight_spectra(
    context: StageContext, base: "Checkpoint", learnt: Mapping[str, Changed], counts: Mapping[str, int], energies: Mapping[str, float]
) -> dict[str, BeforeAfter]:
    """Both spectra of each module, by name; the weights are read one after the other.

    Args:
        learnt: what training made of each module.
        counts: how many singular values to compute, by module.
        energies: ||W||_F^2 that decompose found, by module. A base of other weights than those gives an empty answer.

    Raises:
        SokaError: exit 2 or 3, the base's files cannot be read.
    """
    device, found = pick_device(context.device), {}
    with context.reporter.task("spectra", total=len(learnt), unit="modules") as task:
        for name, weight in base_weights(context, base, list(learnt)):
            seed, shape = module_seed(context.recipe.seed, name), learnt[name].now.shape
            if tuple(weight.shape) != (shape.out_features, shape.in_features):
                return {}
            before, after = _both(weight.to(device), learnt[name], counts[name], seed)
            if abs(before.energy - energies.get(name, before.energy)) > SAME * before.energy:
                return {}
            found[name] = BeforeAfter(before, after)
            task.advance(1)
    return found


def base_weights(context: StageContext, base: "Checkpoint", names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Each module's weight [out, in] in fp32, on the CPU. Where linear layers are stored under their own names no model class is asked."""
    if _is_plain(base, names):
        for name in names:
            yield name, base.tensor(f"{name}.weight").to(torch.float32)
        return
    from soka_cli.models.skeleton import skeleton, target
    from soka_cli.models.weights import stored_weights

    model = skeleton(base.folder, trust=context.recipe.model.trust_remote_code)
    if not set(names) <= {name for name, _ in model.named_modules()}:
        return  # another model
    found = {name: target(model, name) for name in names}
    stored = stored_weights(model, base, list(found.values()))
    for name in names:
        yield name, stored[name].matrix(stored[name].read()).to(torch.float32)


def _is_plain(base: "Checkpoint", names: Sequence[str]) -> bool:
    from soka_cli.run.write import read_json

    facts = read_json(base.folder / "config.json")
    plain = facts.get("model_type") in PLAIN_KINDS and not facts.get("quantization_config")
    return plain and all(f"{name}.weight" in base for name in names)


def _both(weight: Tensor, changed: Changed, count: int, seed: int) -> tuple[WeightSpectrum, WeightSpectrum]:
    shape = changed.now.shape
    terms = update_terms(changed.now, changed.begun)
    update = kron_dense(*(part.to(weight) for part in (terms.left, terms.right, terms.sigma)))
    before = _spectrum(rearrange(weight, shape), count, seed)
    return before, _spectrum(rearrange(weight + update, shape), count, seed)


def _spectrum(matrix: Tensor, count: int, seed: int) -> WeightSpectrum:
    found = leading_triplets(matrix, count, seed=seed)
    return WeightSpectrum(found.sigma.cpu(), found.total_energy)
