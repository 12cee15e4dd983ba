"""SoKA's terms as stock LoKr adapters: which shapes LoKr has, and one adapter folder for each term of K(theta) and of -K(theta0).

LoKr adds scale (w1 (x) w2) to a weight. It has no sizes of its own: one number, decompose_factor, fixes how every module's rows
and columns are split, so a folder holds the modules that one such number suits. Several active adapters add up.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoKrConfig, TaskType
from peft.tuners.lokr.layer import factorization
from safetensors.torch import save_file
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors, KronShape, divisors
from soka_cli.stages.adapter_file import PREFIX, WEIGHTS

NEAREST = 3  # shapes that a refusal offers
MODULES_LISTED = 20


@dataclass(frozen=True)
class Term:
    """One term of one module: w1 [m, n], with sigma and the sign in it, and w2 [p, q]."""

    left: Tensor
    right: Tensor


def terms_of(now: KronFactors, start: KronFactors) -> list[Term]:
    """The terms of K(theta), then those of -K(theta0)."""
    return [
        Term((sign * factors.sigma[k] * factors.left[k]).contiguous(), factors.right[k].contiguous())
        for sign, factors in ((1.0, now), (-1.0, start))
        for k in range(factors.rank)
    ]


def lokr_shape(out_features: int, in_features: int, factor: int) -> KronShape:
    """The sizes that LoKr gives w1 and w2 by its decompose_factor, in PEFT's own arithmetic."""
    (m, p), (n, q) = factorization(out_features, factor), factorization(in_features, factor)
    return KronShape(m, n, p, q)


def lokr_factors(out_features: int, in_features: int) -> dict[KronShape, list[int]]:
    """Every shape that LoKr has for a weight, with the decompose_factors that give it.

    A factor that divides a size splits it there, any other near its square root below the factor: nothing changes between divisors.
    """
    found: dict[KronShape, list[int]] = {}
    edges = {one for size in (out_features, in_features) for divisor in divisors(size) for one in (divisor, divisor + 1)}
    for factor in (-1, *sorted(edges)):
        found.setdefault(lokr_shape(out_features, in_features, factor), []).append(factor)
    return found


def factor_groups(shapes: Mapping[str, KronShape]) -> dict[int, list[str]]:
    """decompose_factor -> the modules that it suits, by as few factors as are seen at once.

    Raises:
        SokaError: exit 2 where LoKr has no such shape, naming the modules and the nearest shapes that it has.
    """
    allowed = {name: set(lokr_factors(shape.out_features, shape.in_features).get(shape, ())) for name, shape in shapes.items()}
    if unfit := {name: shape for name, shape in shapes.items() if not allowed[name]}:
        raise _no_such_shape(unfit)
    groups: dict[int, list[str]] = {}
    left = dict(allowed)
    while left:
        factors = {factor for names in left.values() for factor in names}
        best = max(sorted(factors), key=lambda factor: sum(factor in names for names in left.values()))
        groups[best] = [name for name, names in left.items() if best in names]
        left = {name: names for name, names in left.items() if best not in names}
    return groups


def _no_such_shape(unfit: Mapping[str, KronShape]) -> SokaError:
    kinds: dict[KronShape, list[str]] = {}
    for name, shape in unfit.items():
        kinds.setdefault(shape, []).append(name)
    lines = []
    for shape, names in kinds.items():
        listed = ", ".join(names[:MODULES_LISTED]) + (f" and {len(names) - MODULES_LISTED} more" if len(names) > MODULES_LISTED else "")
        offers = " or ".join(f"{{m: {one.m}, n: {one.n}}}" for one in nearest_shapes(shape))
        lines.append(f"{shape.out_features}x{shape.in_features} = {shape}: LoKr has {offers} ({listed})")
    first = next(iter(kinds))
    offer = nearest_shapes(first)[0]
    kind = kinds[first][0].rpartition(".")[2]
    return SokaError(
        f"LoKr has no factors of these sizes, in {len(unfit)} modules",
        where="adapter.shape",
        why="\n".join(lines),
        hint=f"train with adapter.shape_pattern='{{{kind}: {{m: {offer.m}, n: {offer.n}}}}}'; or export this adapter with "
        "--as lora --rank R, or --as peft",
        exit_code=ExitCode.USAGE,
    )


def nearest_shapes(shape: KronShape) -> list[KronShape]:
    """LoKr's shapes for the same weight, those of the most similar factors first."""
    found = lokr_factors(shape.out_features, shape.in_features)
    return sorted(found, key=lambda one: (abs(math.log(one.m / shape.m)) + abs(math.log(one.n / shape.n)), one.m))[:NEAREST]


def write_terms(folder: Path, terms: Mapping[str, Sequence[Term]], *, base: str, revision: str | None) -> dict[str, list[str]]:
    """Fill an empty folder with adapters term-01, term-02, ...; returns each one's modules."""
    shapes = {name: KronShape(*held[0].left.shape, *held[0].right.shape) for name, held in terms.items() if held}
    parts = [
        (factor, place, [name for name in names if len(terms[name]) > place])
        for factor, names in factor_groups(shapes).items()
        for place in range(max(len(terms[name]) for name in names))
    ]
    digits = max(2, len(str(len(parts))))
    written = {}
    for number, (factor, place, names) in enumerate(parts, start=1):
        name = f"term-{number:0{digits}d}"
        (folder / name).mkdir()
        rank = max(max(shapes[module].p, shapes[module].q) for module in names)  # so large that PEFT keeps w2 whole; alpha / rank is 1
        config = LoKrConfig(
            r=rank,
            alpha=rank,
            decompose_factor=factor,
            target_modules=names,
            task_type=TaskType.CAUSAL_LM,
            base_model_name_or_path=base,
            revision=revision,
            inference_mode=True,
        )
        config.save_pretrained(str(folder / name))
        save_file(_tensors({module: terms[module][place] for module in names}), folder / name / WEIGHTS, metadata={"format": "pt"})
        written[name] = names
    return written


def _tensors(terms: Mapping[str, Term]) -> dict[str, Tensor]:
    pairs: Iterable[tuple[str, str, Tensor]] = (
        (module, part, tensor) for module, term in terms.items() for part, tensor in (("w1", term.left), ("w2", term.right))
    )
    return {f"{PREFIX}{module}.lokr_{part}": tensor.to(torch.float32).contiguous() for module, part, tensor in pairs}
