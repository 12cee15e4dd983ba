"""What decompose has to do, module by module, before the first weight is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from soka_cli import __version__
from soka_cli.adapter.config import SokaConfig
from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronShape, balanced
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import Target, refuse_tied, skeleton, targets, tied_linear
from soka_cli.models.weights import StoredWeight, stored_weights
from soka_cli.run.digest import json_digest
from soka_cli.stages.allocation import spread_evenly
from soka_cli.stages.cautions import SHARED, UNMATCHED
from soka_cli.stages.context import StageContext
from soka_cli.stages.dimensions import unmatched


@dataclass(frozen=True)
class Work:
    """What is to be done for one module: where its weight lies, and the key of its part file."""

    weight: StoredWeight
    key: str

    @property
    def name(self) -> str:
        """The module's, in the transformers model."""
        return self.weight.target.name

    @property
    def cost(self) -> int:
        """Time that the module takes, up to a common factor: the solver goes through every entry of the weight equally often."""
        return self.weight.target.out_features * self.weight.target.in_features


@dataclass(frozen=True)
class Plan:
    """All modules, in the model's order, and what the user should know of the choice."""

    works: tuple[Work, ...]
    warnings: tuple[str, ...]


def planned(context: StageContext, checkpoint: Checkpoint, inputs: dict[str, Any]) -> Plan:
    """Targets, stored tensors and shapes.

    Raises:
        SokaError: exit 2 (targets, shapes), 3 (the base's files).
    """
    model = skeleton(checkpoint.folder, trust=context.recipe.model.trust_remote_code)
    found = targets(model, context.recipe.adapter.target_modules)
    refuse_tied(found.values())
    stored = stored_weights(model, checkpoint, list(found.values()))
    config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
    shapes = {name: shape_asked(config, target) for name, target in found.items()}
    if config.rank_rule.rule == "budget":  # refuses a total that is too small; no term is cheaper than the balanced shape's
        sizes = {name: shape or balanced(found[name].out_features, found[name].in_features) for name, shape in shapes.items()}
        spread_evenly(config.rank_rule, sizes)
    works = (Work(stored[name], json_digest({"soka": __version__, "inputs": inputs, "module": name})) for name in found)
    return Plan(tuple(works), tuple(warnings(context, model, found)))


def shape_asked(config: SokaConfig, target: Target) -> KronShape | None:
    """The factor sizes asked for, None where they are to be searched; exit 2 where they do not divide the weight's."""
    try:
        return config.shape_of(target.name, target.out_features, target.in_features)
    except ValueError as error:
        raise SokaError(
            "the shape asked for does not fit a target's weight",
            where=f"{target.name}, {target.out_features} x {target.in_features}",
            why=str(error),
            hint="adapter.shape=balanced, or one of the sizes above; adapter.shape_pattern gives one kind of module another shape",
            exit_code=ExitCode.USAGE,
        ) from None


def warnings(context: StageContext, model: PreTrainedModel, found: dict[str, Target]) -> Iterator[str]:
    """Names that match nothing while others do; and, under all-linear, layers left out because the embedding shares their weight."""
    wanted = context.recipe.adapter.target_modules
    for name in unmatched(wanted, list(found)):
        yield f"{name} {UNMATCHED}"
    if wanted == "all-linear":
        for name, other in tied_linear(model).items():
            yield f"{name} {SHARED} {other}"
