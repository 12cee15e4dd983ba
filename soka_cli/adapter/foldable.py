"""Taking theta0 out of a layer's base weight while a single adapter trains, so that its product costs nothing."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from soka_cli.kron import KronFactors, kron_dense


class Foldable(BaseTunerLayer):
    """An adapted layer whose base weight may hold W - K(theta0) for a while.

    Whatever reads the layer sees W, and the adapter as the difference from theta0: its state dict, `merge`, `get_delta_weight`, what it
    computes with the adapter disabled. Only the base layer's own `weight` tells.
    """

    folded: str | None = None  # the adapter whose theta0 is out of the base weight
    _pristine: Tensor | None = None  # W, meanwhile
    base_layer: nn.Module
    fan_in_fan_out: bool

    # What PEFT's base class provides, for the type checker.
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    set_base_weight: Callable[[Tensor], None]

    @abstractmethod
    def start_factors(self, adapter_name: str) -> KronFactors:
        """The terms the adapter started from."""

    @abstractmethod
    def forget_products(self) -> None:
        """Drop what was made of the base weight and the factors."""

    def why_not_folded(self) -> str | None:
        """What stands in the way of `fold`; None where nothing does."""
        if self.quantization_backend is not None:
            return "its weight is packed"
        if self.merged:
            return "adapters are merged into it"
        if len(self.active_adapters) != 1:
            return f"{len(self.active_adapters)} adapters are active, and a weight takes in the start of one"
        if why := why_untouchable(self.base_layer):
            return why
        return "its weight has no values yet" if self.get_base_layer().weight.is_meta else None

    @torch.no_grad()
    def fold(self, adapter_name: str) -> float:
        """Let the base weight hold W - K(theta0) of an adapter; made in fp32 (fp64 for such a base) and rounded once to the base's type.

        W is kept in main memory until `unfold`. Another active adapter, a merge and an unload unfold by themselves.

        Returns:
            The norm of what the rounding changed over that of W - K(theta0): 0 for fp32, about 0.002 for bf16.

        Raises:
            ValueError: what `why_not_folded` says; the layer is as it was.
        """
        if (why := self.why_not_folded()) is not None:
            raise ValueError(f"the start cannot be folded into the base weight: {why}")
        self.unfold()
        weight: Any = self.get_base_layer().weight
        pristine, start = weight.data, self.start_factors(adapter_name)
        dense = transpose(kron_dense(start.left.float(), start.right.float(), start.sigma.float()), self.fan_in_fan_out)
        exact = pristine.to(torch.promote_types(pristine.dtype, torch.float32)) - dense.to(pristine.device)
        self.set_base_weight(exact.to(pristine.dtype).contiguous())
        self._pristine, self.folded = pristine.to("cpu"), adapter_name
        self.forget_products()
        return float((weight.data - exact).norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny))

    @torch.no_grad()
    def unfold(self) -> None:
        """Put W back, bit for bit; nothing happens where no start is folded in."""
        if self.folded is None or self._pristine is None:
            return
        weight: Any = self.get_base_layer().weight
        self.set_base_weight(self._pristine.to(weight.device))
        self._pristine = self.folded = None
        self.forget_products()

    @contextmanager
    def start_apart(self, adapter_name: str | None) -> Iterator[None]:
        """For a change of W or of the adapter's theta0: where that is folded in, it is out meanwhile."""
        again = adapter_name is not None and self.folded == adapter_name
        if again:
            self.unfold()
        yield
        if again and adapter_name is not None:
            self.fold(adapter_name)

    def get_base_weight(self) -> Tensor:
        if self.folded is not None and self._pristine is not None:
            return self._pristine
        return super().get_base_weight()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's; unfolds where the adapter is no longer active."""
        if self.folded is not None and self.folded not in ([adapter_names] if isinstance(adapter_names, str) else adapter_names):
            self.unfold()
        super().set_adapter(adapter_names, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        if self.folded == adapter_name:
            self.unfold()
        super().delete_adapter(adapter_name)


def why_untouchable(base: nn.Module) -> str | None:
    """Why a base layer's weight cannot take anything in; None for a plain frozen layer."""
    if hasattr(base, "_hf_hook"):
        return "its weight is fetched when it is used"
    if type(base) not in (nn.Linear, Conv1D):
        return f"it is a {type(base).__name__}, no plain linear layer"
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
        return "hooks look at its inputs or results"
    if type(base.weight) is not nn.Parameter:
        return "its weight is shared out among processes, or of a kind of its own"
    return "its weight is trained" if base.weight.requires_grad else None
