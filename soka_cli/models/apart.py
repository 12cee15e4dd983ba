"""Whether a model keeps packed rows apart: tried out, since it depends on its class and on the attention it runs."""

from typing import Any

import torch
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.offload import computing_device

LENGTH = 6  # tokens of each row that is tried
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest logit; 16 bits round differently by shape
ROUGH_TOLERANCE = 5e-2


@torch.no_grad()
def require_apart(model: Any) -> None:
    """Refuse a model in which a packed row's outputs depend on the row before it, or on where in the pack it lies (exit 3)."""
    training = model.training
    model.eval()
    first, other, row = _rows(model)
    behind_first, behind_other, alone = _behind(model, first, row), _behind(model, other, row), _logits(model, row)
    model.train(training)
    scale = float(alone.abs().max())
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, ROUGH_TOLERANCE)
    faults = {
        "a row's outputs change with the row packed before it": (behind_first - behind_other, TOLERANCE[torch.float32]),
        "a row's outputs are not those that it has alone": (behind_first - alone, tolerance),
    }
    for fault, (difference, allowed) in faults.items():
        if not float(difference.abs().max()) <= allowed * scale:
            raise SokaError(
                f"{type(model).__name__} cannot be trained on packed rows.",
                where="data.packing: true",
                why=f"{fault}: logits differ by {float(difference.abs().max()):.2g} of {scale:.2g}",
                hint="set data.packing=false",
                exit_code=ExitCode.ENVIRONMENT,
            )


def _rows(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Three rows of other ids, [LENGTH] each."""
    size = model.get_input_embeddings().num_embeddings
    return tuple((torch.arange(LENGTH, device=computing_device(model)) * 7 + shift) % size for shift in (3, 11, 29))


def _behind(model: Any, before: Tensor, row: Tensor) -> Tensor:
    """Logits of `row` packed behind `before`, [LENGTH, vocabulary]."""
    return _logits(model, before, row)[LENGTH:]


def _logits(model: Any, *rows: Tensor) -> Tensor:
    positions = torch.arange(LENGTH, device=computing_device(model)).repeat(len(rows))
    logits: Tensor = model(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False).logits[0]
    return logits.float()
