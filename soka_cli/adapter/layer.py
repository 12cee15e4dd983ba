"""A frozen linear layer with SoKA adapters on it."""

import warnings
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from accelerate.utils import align_module_device
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from peft.utils.other import transpose
from peft.utils.quantization_utils import Bnb4bitBackend
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from soka_cli.adapter.config import SIGMAS, SokaConfig
from soka_cli.adapter.foldable import Foldable, why_untouchable
from soka_cli.adapter.start import Start, make_start
from soka_cli.kron import (
    Kept,
    KronFactors,
    KronShape,
    KronSum,
    LaidOut,
    Plan,
    Work,
    balanced,
    choose_plan,
    computed_in,
    factored_update,
    kron_dense,
    kron_difference,
    laid_out_update,
    matrix_update,
    merged_linear,
)
from soka_cli.recipe.schema import DATA_INITS

TRAINED = ("soka_U", "soka_V", "soka_sigma")
START = ("soka_start_U", "soka_start_V", "soka_start_sigma")


class SokaLayer(Foldable):
    """Holds, per adapter, the trained terms theta and the terms theta0 it started from.

    `soka_U` [r, m, n], `soka_V` [r, p, q], `soka_sigma` [r] are parameters; `soka_start_*` are persistent buffers of the same
    shapes. All are fp32 whatever the base's type. The base layer is never changed, except by `merge` and, for a while, by `fold`.
    """

    adapter_layer_names = TRAINED
    other_param_names = START

    # What PEFT's base class provides, for the type checker.
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]
    _get_base_layer_device_and_dtype: Callable[[nn.Module], tuple[torch.device | None, torch.dtype | None]]

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        self.base_layer = base_layer
        self.soka_U = nn.ParameterDict()
        self.soka_V = nn.ParameterDict()
        self.soka_sigma = nn.ParameterDict()
        self.soka_start_U = BufferDict(persistent=True)
        self.soka_start_V = BufferDict(persistent=True)
        self.soka_start_sigma = BufferDict(persistent=True)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._pristine: Tensor | None = None  # the base weight as it was, while adapters are merged or a start is folded in
        self._product: dict[str, Any] = {}  # the plan that an adapter's config asks for, or auto
        self.plans_used: Counter[str] = Counter()  # passes in training by plan
        self.kept: Kept[Tensor] | None = None  # set by `keep_matrices`
        self._plans: dict[tuple[Any, ...], Plan] = {}  # those chosen, by what they were chosen for
        self._laid_out_updates: dict[tuple[str, torch.dtype], Kept[LaidOut]] = {}
        base = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(base, **quantization)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.out_features, self.in_features = layer_sizes(base)

    # ---- making an adapter

    def update_layer(self, adapter_name: str, config: SokaConfig, module_name: str, *, values_follow: bool) -> None:
        """Add an adapter to this layer.

        `values_follow` says that somebody fills the factors in afterwards (a load, or a prepared decomposition): then, as
        under `inference_mode` and over a weight without values, they are zeros of the right shape and nothing is decomposed.

        Raises:
            ValueError: sizes that do not divide, a weight that is not finite, an init that needs data; names the module.
        """
        self._product[adapter_name] = config.product
        self._plans.clear()
        # PEFT makes a loaded config trainable again before the adapter's values are there
        values_follow = values_follow or config.inference_mode or (config.saved and config.init in DATA_INITS)
        with torch.no_grad(), align_module_device(self.get_base_layer()):
            device = self._weight_device()
            if values_follow or device.type == "meta":
                shape = config.shape_of(module_name, self.out_features, self.in_features) or balanced(self.out_features, self.in_features)
                start = _blank(shape, config.rule_of(module_name).most_terms(shape.max_rank), device)
            else:
                start = self._made(config, module_name).factors
                config.record(module_name, start.shape, start.rank)
            self.start_from(adapter_name, config, start)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def start_at_hand(self, config: SokaConfig, module_name: str) -> Start | None:
        """What an adapter that is still to be made would start from; None where the weight has no values.

        Raises:
            ValueError: as `update_layer`.
        """
        with align_module_device(self.get_base_layer()):
            return None if self._weight_device().type == "meta" else self._made(config, module_name)

    @property
    def on_cpu(self) -> bool:
        """Whether the base weight lies in main memory; an offloaded one does not count."""
        return self._weight_device().type == "cpu"

    def _weight_device(self) -> torch.device:
        base = self.get_base_layer()
        device, _ = self._get_base_layer_device_and_dtype(base)
        return next(base.parameters()).device if device is None else device

    def get_base_weight(self) -> Tensor:
        """The base weight in its own layout; a copy in a floating type where it is quantised. Where a start is folded in, as it was."""
        if isinstance(self.quantization_backend, Bnb4bitBackend):
            # At its first inference on a CPU bitsandbytes rearranges the packed weight, and reading it then gives garbage;
            # taking the state dict puts it back.
            self.get_base_layer().state_dict()
        return super().get_base_weight()

    def _made(self, config: SokaConfig, module_name: str) -> Start:
        weight = self.get_base_weight() if self._pristine is None else self._pristine
        try:
            return make_start(transpose(weight, self.fan_in_fan_out).float(), config, module_name)
        except ValueError as error:
            raise ValueError(f"{module_name}: {error}") from error

    def start_from(self, adapter_name: str, config: SokaConfig, start: KronFactors) -> None:
        """Give the adapter its start, and present terms that equal it, or by `init_weights=False` do not."""
        start = SIGMAS[config.sigma](start)
        self.set_factors(adapter_name, *((start, start) if config.init_weights else _apart(start)))

    def set_factors(self, adapter_name: str, start: KronFactors, present: KronFactors | None = None) -> None:
        """Give the adapter its start, and its present terms (default: the start)."""
        present = start if present is None else present
        with self.start_apart(adapter_name):
            for names, factors in ((TRAINED, present), (START, start)):
                for name, tensor in zip(names, (factors.left, factors.right, factors.sigma), strict=True):
                    self._put(name, adapter_name, tensor.detach().to(self._factor_device(), torch.float32).clone())

    def _factor_device(self) -> torch.device | None:
        """Where the base layer computes; an offloaded weight says meta outside its hook, so None (leave it) there."""
        hook = getattr(self.get_base_layer(), "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return torch.device(device) if device is not None else self._weight_device()

    def _put(self, name: str, adapter_name: str, tensor: Tensor) -> None:
        held = getattr(self, name)
        if isinstance(held, BufferDict):
            held[adapter_name] = tensor
        else:
            trainable = held[adapter_name].requires_grad if adapter_name in held else True
            held[adapter_name] = nn.Parameter(tensor, requires_grad=trainable)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Follow the base layer's device; unlike PEFT's, not its type, which would cost fp32 digits."""
        target = device or self._factor_device()
        if adapter_name not in self.soka_U or target is None or target.type == "meta":
            return
        for name in (*TRAINED, *START):
            tensor = getattr(self, name)[adapter_name]
            if not tensor.is_meta:
                tensor.data = tensor.data.to(target)

    def cast_factors(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Hold the adapter's terms in another floating type, start and present alike."""
        if adapter_name in self.soka_U:
            with self.start_apart(adapter_name):
                for name in (*TRAINED, *START):
                    tensor = getattr(self, name)[adapter_name]
                    tensor.data = tensor.data.to(dtype)

    # ---- what an adapter adds

    def factors(self, adapter_name: str) -> KronFactors:
        """The adapter's present terms."""
        return KronFactors(self.soka_U[adapter_name], self.soka_V[adapter_name], self.soka_sigma[adapter_name])

    def start_factors(self, adapter_name: str) -> KronFactors:
        """The terms the adapter started from."""
        return KronFactors(self.soka_start_U[adapter_name], self.soka_start_V[adapter_name], self.soka_start_sigma[adapter_name])

    def forget_products(self) -> None:
        self._laid_out_updates.clear()
        if self.kept is not None:
            self.kept.drop()

    def _start_beside(self, adapter_name: str) -> KronFactors | None:
        """Those that have to be subtracted from the product; None where they are out of the base weight already."""
        return None if self.folded == adapter_name else self.start_factors(adapter_name)

    def _difference(self, adapter_name: str) -> tuple[KronSum, KronSum]:
        """K(theta) - K(theta0) as two Kronecker sums."""
        return kron_difference(self.factors(adapter_name), self.start_factors(adapter_name))

    def _held(self, adapter_names: list[str]) -> list[str]:
        return [name for name in adapter_names if name in self.soka_U]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


class Linear(nn.Module, SokaLayer):
    """y = W x + b + sum over active adapters of (K(theta) - K(theta0)) x, with K(theta) = sum_k sigma_k U_k (x) V_k.

    Args:
        base_layer: `nn.Linear`, GPT-2's `Conv1D`, or a quantised linear layer that PEFT knows.
        adapter_name: the first adapter's name.
        config: its config; the rank and shape chosen are written into it.
        module_name: full name of the module in the base model.
        values_follow: see `update_layer`.

    Raises:
        ValueError: see `update_layer`.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SokaConfig, module_name: str, *, values_follow: bool, **quantization: Any
    ) -> None:
        super().__init__()
        SokaLayer.__init__(self, base_layer, **quantization)
        self._active_adapter = adapter_name
        self._folded_before_load: str | None = None
        self.register_state_dict_post_hook(_with_pristine_weight)
        self.register_load_state_dict_post_hook(_folded_again)
        self.update_layer(adapter_name, config, module_name, values_follow=values_follow)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self._held(self.active_adapters)
        if self.folded is not None and self.folded not in names:
            result = self._pristine_result(x, *args, **kwargs)
        elif len(names) == 1 and not args and not kwargs and (merged := self._merged_result(x, names[0])) is not None:
            return merged
        else:
            result = self.base_layer(x, *args, **kwargs)  # (..., out)
        for name in names:
            inputs = self._cast_input_dtype(x, self.soka_U[name].dtype)  # (..., in)
            result = result + self._update(inputs, name).to(result.dtype)
        return result

    def _pristine_result(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's, of a folded layer whose adapter takes no part."""
        assert self._pristine is not None
        return functional_call(self.base_layer, {"weight": self._pristine.to(x.device)}, (x, *args), kwargs)

    def _merged_result(self, x: Tensor, name: str) -> Tensor | None:
        """The whole layer through one matrix; None where the plan is another, or the base weight cannot take the update in."""
        base: Any = self.base_layer
        plan = self._plan(x, name, inside=True)
        if plan == "factored" or not self._takes_update(base, x, self.soka_U[name]):
            return None
        self._count(plan, name)
        return merged_linear(
            x,
            base.weight,
            base.bias,
            self.factors(name),
            self._start_beside(name),
            fan_in_fan_out=self.fan_in_fan_out,
            dense_gradients=plan == "dense",
            kept=self.kept,
        )

    def _update(self, x: Tensor, name: str) -> Tensor:
        """What one adapter adds to the base layer's result."""
        plan = self._plan(x, name, inside=False)
        if plan == "factored" and not torch.is_grad_enabled():
            dtype = computed_in(x)
            y = self._laid_out(name, dtype)(x.to(dtype).reshape(-1, self.in_features))
            return y.view(*x.shape[:-1], self.out_features)
        self._count(plan, name)
        now, start = self.factors(name), self._start_beside(name)
        if plan == "factored":
            return factored_update(x, now, start)
        return matrix_update(x, now, start, dense_gradients=plan == "dense", kept=self.kept)

    def _laid_out(self, name: str, dtype: torch.dtype) -> LaidOut:
        """The update ready to be applied, as the tokens of an answer come one by one."""
        parts = [getattr(self, part)[name] for part in (TRAINED if self.folded == name else (*TRAINED, *START))]
        kept = self._laid_out_updates.setdefault((name, dtype), Kept())
        return kept.get(parts, None, lambda: laid_out_update(self.factors(name), self._start_beside(name), dtype))

    def train(self, mode: bool = True) -> Any:
        self._laid_out_updates.clear()
        return super().train(mode)

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """As torch's, which moves and casts; the pristine weight goes along."""
        with self.start_apart(self.folded):
            return super()._apply(*arguments, **options)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """As torch's; a folded layer takes W and theta0 as such, and `_folded_again` follows when its parts are loaded."""
        self._folded_before_load = self.folded
        self.unfold()
        super()._load_from_state_dict(*arguments, **options)

    @staticmethod
    def _takes_update(base: nn.Module, x: Tensor, factor: Tensor) -> bool:
        """Whether W + K(theta) - K(theta0) says what the two apart do: a plain frozen layer, all of it computed in fp32 or fp64."""
        if why_untouchable(base) is not None:
            return False
        weight: Any = base.weight
        alike = x.dtype == weight.dtype == factor.dtype == computed_in(x) and x.device == weight.device == factor.device
        return alike and (x.dtype == torch.float64 or (x.dtype == torch.float32 and products_keep_fp32()))

    def plan_of(self, name: str, vectors: int) -> Plan:
        """The plan of a pass over so many vectors, under the autocast that is on: what `forward` would take, compiled or not."""
        factor = self.soka_U[name]
        x = torch.empty((), dtype=factor.dtype, device=factor.device).expand(vectors, self.in_features)
        plan = self._plan(x, name, inside=True)
        if plan != "factored" and self._takes_update(self.base_layer, x, factor):
            return plan
        return self._plan(x, name, inside=False)

    def _plan(self, x: Tensor, name: str, *, inside: bool) -> Plan:
        """How one adapter's product is computed for this input, as asked for or as it costs the least."""
        if (asked := self._product[name]) != "auto":
            return asked
        left, dtype = self.soka_U[name], computed_in(x)
        key = (
            name,
            prod(x.shape[:-1]),
            inside,
            self.kept is not None,
            torch.is_grad_enabled() and left.requires_grad,
            self.folded == name,
            dtype,
            x.device.type,
        )
        if torch.compiler.is_compiling():
            return self._cheapest(*key)
        if (plan := self._plans.get(key)) is None:
            plan = self._plans[key] = self._cheapest(*key)
        return plan

    def _cheapest(self, name: str, *work: Any) -> Plan:
        """The fields of `Work` after the sizes, in their order."""
        return choose_plan(Work((*self.soka_U[name].shape, *self.soka_V[name].shape[1:]), *work))

    def _count(self, plan: Plan, name: str) -> None:
        if torch.is_grad_enabled() and self.soka_U[name].requires_grad and not torch.compiler.is_compiling():
            self.plans_used[plan] += 1

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """K(theta) - K(theta0) in fp32, laid out as the base weight: [out, in], or [in, out] for Conv1D."""
        first, second = (tuple(tensor.float() for tensor in terms) for terms in self._difference(adapter))
        return transpose(kron_dense(*first) + kron_dense(*second), self.fan_in_fan_out)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight: W + sum (K(theta) - K(theta0)), in fp32 from the pristine W, rounded once.

        The pristine weight is kept until `unmerge`, which puts it back as it was. An untrained adapter leaves every bit of
        the weight alone.

        Args:
            safe_merge: look for values that are not finite first, and leave the weight alone if there are any.
            adapter_names: which adapters; None takes the active ones. Those merged already are skipped with a warning.

        Raises:
            ValueError: `safe_merge` found values that are not finite.
            TypeError: the base is quantised in a way that cannot be written back.
        """
        names = self._held(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        self.unfold()
        if self.quantization_backend is not None and not self.quantization_backend.supports_merge:
            raise TypeError(f"a {self.quantization_backend.backend_name} base cannot take a merged weight; merge into the float base")
        pristine = self.get_base_weight() if self._pristine is None else self._pristine
        total = torch.zeros_like(pristine, dtype=torch.promote_types(pristine.dtype, torch.float32))
        for name in (*self.merged_adapters, *names):
            total += self.get_delta_weight(name).to(total.device)
            if safe_merge and not torch.isfinite((pristine + total).to(pristine.dtype)).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        self._pristine = pristine
        if total.any():
            self.set_base_weight((pristine + total).to(pristine.dtype))
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the pristine weight back, bit for bit (a quantised one is quantised again)."""
        if not self.merged or self._pristine is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight: Any = self.get_base_layer().weight
        dtype = self._pristine.dtype if self.quantization_backend is not None else weight.dtype
        self.set_base_weight(self._pristine.to(weight.device, dtype))
        self._pristine = None
        self.merged_adapters.clear()

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return "soka." + super().__repr__()


def _with_pristine_weight(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A state dict has the base weight as it was."""
    assert isinstance(layer, Linear)
    if layer.folded is not None:
        state[f"{prefix}base_layer.weight"] = layer.get_base_weight()


def _folded_again(layer: nn.Module, _: Any) -> None:
    """After a load into a folded layer: with the theta0 that came."""
    assert isinstance(layer, Linear)
    if (name := layer._folded_before_load) is not None:
        layer._folded_before_load = None
        layer.fold(name)


@torch.compiler.assume_constant_result
def products_keep_fp32() -> bool:
    """Whether products of fp32 matrices are computed as such, not in TF32 or in parts of BF16."""
    return torch.get_float32_matmul_precision() == "highest"


def layer_sizes(base: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, from its own numbers: a packed or sharded weight has another shape."""
    if isinstance(base, Conv1D):
        return base.nf, base.nx
    for outputs, inputs in (("out_features", "in_features"), ("outfeatures", "infeatures")):
        if hasattr(base, outputs) and hasattr(base, inputs):
            return getattr(base, outputs), getattr(base, inputs)
    raise ValueError(f"{type(base).__name__} does not say its input and output sizes")


def _blank(shape: KronShape, rank: int, device: torch.device) -> KronFactors:
    return KronFactors(
        torch.zeros(rank, shape.m, shape.n, device=device),
        torch.zeros(rank, shape.p, shape.q, device=device),
        torch.zeros(rank, device=device),
    )


def _apart(start: KronFactors) -> tuple[KronFactors, KronFactors]:
    """(start, present) whose difference is one random term of sigma_1's size, from torch's global generator.

    It depends on neither the rank nor the factors, so a weight and its quantised copy are moved alike.
    """
    left, right, sigma, absent = start.left.clone(), start.right.clone(), start.sigma.clone(), start.sigma.clone()
    for factor in (left, right):
        factor[0] = torch.randn_like(factor[0]) / factor[0].numel() ** 0.5
    sigma[0] = torch.where(sigma[0] > 0, sigma[0], 1.0)
    absent[0] = 0.0
    return KronFactors(start.left, start.right, absent), KronFactors(left, right, sigma)
