"""What decompose has to do, module by module, before the first weight is read."""

from dataclasses import dataclass
from typing import Any

from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronShape
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.models.skeleton import refuse_tied, skeleton, targets
from soka_cli.models.weights import StoredWeight, stored_weights
from soka_cli.run.digest import json_digest
from soka_cli.stages.context import StageContext


@dataclass(frozen=True)
class Work:
    """What is to be done for one module: where its weight lies, how it is split, and the key of its part file."""

    weight: StoredWeight
    shape: KronShape
    key: str

    @property
    def name(self) -> str:
        """The module's, in the transformers model."""
        return self.weight.target.name

    @property
    def cost(self) -> int:
        """Time that the module takes, up to a common factor: the solver goes through every entry of the weight equally often."""
        return self.shape.out_features * self.shape.in_features


def planned_work(context: StageContext, checkpoint: Checkpoint, inputs: dict[str, Any]) -> list[Work]:
    """Targets, stored tensors and shapes, in the model's order.

    Raises:
        SokaError: exit 2 (targets, shapes), 3 (the base's files).
    """
    model = skeleton(checkpoint.folder)
    found = targets(model, context.recipe.adapter.target_modules)
    refuse_tied(found.values())
    stored = stored_weights(model, checkpoint, list(found.values()))
    config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
    works = []
    for name, target in found.items():
        try:
            shape = config.shape_of(name, target.out_features, target.in_features)
        except ValueError as error:
            raise SokaError(
                "the shape asked for does not fit a target's weight",
                where=f"{name}, {target.out_features} x {target.in_features}",
                why=str(error),
                hint="adapter.shape=balanced, or one of the sizes above; adapter.shape_pattern gives one kind of module another shape",
                exit_code=ExitCode.USAGE,
            ) from None
        works.append(Work(stored[name], shape, json_digest({"inputs": inputs, "module": name})))
    return works
