"""Packed rows must not see one another: tried out on the model itself."""

from typing import Any

import pytest
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.apart import require_apart
from tests import builders


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_models_that_read_positions_keep_packed_rows_apart(kind: str, attention: str) -> None:
    model = builders.tiny_model(kind)
    model.set_attn_implementation(attention)
    require_apart(model.train())
    assert model.training


class Leaky(torch.nn.Module):
    """Hands its model a two-dimensional mask, or no positions: what makes packed rows leak."""

    def __init__(self, spoil: str) -> None:
        super().__init__()
        self.inner = builders.tiny_model()
        self.spoil = spoil
        self.device = self.inner.device

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any) -> Any:
        if self.spoil == "mask":
            return self.inner(input_ids=input_ids, position_ids=position_ids, attention_mask=torch.ones_like(input_ids), **options)
        return self.inner(input_ids=input_ids, **options)


@pytest.mark.parametrize("spoil", ["mask", "positions"])
def test_a_model_that_lets_them_see_one_another_is_refused(spoil: str) -> None:
    with pytest.raises(SokaError) as failure:
        require_apart(Leaky(spoil))
    assert failure.value.exit_code is ExitCode.ENVIRONMENT
    assert "packed before it" in failure.value.why
