"""Whether a recipe's training has the packages, the memory and the disk that it needs here."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from soka_cli.run.environment import memory_bytes
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.run.resources import available_memory, free_bytes
from soka_cli.stages.check import Check, attempt
from soka_cli.stages.context import StageContext
from soka_cli.stages.trackers import require_trackers

GIGABYTE = 10**9


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def quantization_check() -> Check:
    """bitsandbytes, which packs bases and has the 8-bit optimizer, and Triton, which compiles kernels for a GPU; both tried by import."""
    import torch

    packs, compiles = version_of("bitsandbytes"), version_of("triton")
    where = "on a GPU" if torch.cuda.is_available() else "on the CPU, slowly" if packs else "nowhere"
    parts = [
        f"bitsandbytes {packs}: int8 and nf4 bases {where}" if packs else "no bitsandbytes: bases stay whole",
        f"triton {compiles}: train.compile on a GPU" if compiles else "no triton: train.compile compiles for the CPU alone",
    ]
    if packs:
        loaded = attempt("bitsandbytes and triton", lambda: __import__("bitsandbytes"))
        if isinstance(loaded, Check):
            return replace(loaded, status="warn", hint="pip install --force-reinstall 'soka-cli[quant]'")
    return Check("bitsandbytes and triton", "ok", "; ".join(parts), "" if packs else "pip install 'soka-cli[quant]'")


def training_checks(context: StageContext, device: str) -> list[Check]:
    """Packages that the train section names, its precision, and the plan's memory and disk against what is here."""
    return [*option_checks(context), *precision_checks(context, device), *room_checks(context, device)]


def option_checks(context: StageContext) -> Iterator[Check]:
    train = context.recipe.train
    if train.trackers:
        found = attempt("train.trackers", lambda: require_trackers(train.trackers))
        yield found if isinstance(found, Check) else Check("train.trackers", "ok", ", ".join(train.trackers))
    if train.optimizer == "adamw-8bit":
        here = find_spec("bitsandbytes") is not None
        hint = "" if here else "pip install 'soka-cli[quant]', or train.optimizer=adamw"
        yield Check("train.optimizer", "ok" if here else "fail", f"adamw-8bit {'is there' if here else 'needs bitsandbytes'}", hint)


def gpu(device: str) -> Any:
    """The GPU that training would take, None on a CPU."""
    import torch

    from soka_cli.models.base import pick_device

    chosen = attempt("device", lambda: pick_device(device))
    return None if isinstance(chosen, Check) or chosen == "cpu" else torch.device(chosen)


def precision_checks(context: StageContext, device: str) -> Iterator[Check]:
    import torch

    if context.recipe.train.precision != "bf16" or (chosen := gpu(device)) is None:
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(chosen)
        yield Check("train.precision", "fail", f"{name} does not compute in bfloat16", "set train.precision=fp32")


def room_checks(context: StageContext, device: str) -> Iterator[Check]:
    """What the start and one training step hold and what the run writes, by the plan's estimates."""
    from soka_cli.stages.plan import plan

    def estimate() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="soka-doctor-") as folder:
            return plan(replace(context, layout=RunLayout(Path(folder)), reporter=SilentReporter(), offline=True)).figures

    figures = attempt("plan", estimate)
    if isinstance(figures, Check):
        yield replace(figures, status="warn", detail=f"memory and disk cannot be estimated: {figures.detail}")
        return
    place = memory_of(device)
    if (start := figures["start_memory"]) is not None:
        yield start_room(context.recipe.adapter.init, start["total"], *place)
    yield training_room(figures["memory"]["from"]["total"], *place)
    yield disk_room(context.layout, figures["disk"]["total"])


def memory_of(device: str) -> tuple[str, int, int]:
    """Where training computes, and that memory's bytes, all and free."""
    import torch

    if (chosen := gpu(device)) is not None:
        free, total = torch.cuda.mem_get_info(chosen)
        return str(chosen), total, free
    total = memory_bytes()
    return "main memory", total, available_memory() or total


def start_room(init: str, needed: int, where: str, total: int, free: int) -> Check:
    """Decompose refuses a start from data that does not fit (stages/starts.py), however well training would."""
    hint = "adapter.init=weight loads no model; or fewer adapter.target_modules, train.micro_batch_size=1, a larger device: see soka plan"
    return memory_room("start's memory", f"init {init} holds {needed / GIGABYTE:.2f} GB in decompose", hint, needed, where, total, free)


def training_room(needed: int, where: str, total: int, free: int) -> Check:
    hint = "a smaller train.micro_batch_size or data.max_length, train.activation_checkpointing=true, model.quantization=nf4: see soka plan"
    return memory_room("training memory", f"a step holds {needed / GIGABYTE:.2f} GB", hint, needed, where, total, free)


def memory_room(name: str, held: str, hint: str, needed: int, where: str, total: int, free: int) -> Check:
    """More than all there is fails, more than is free now is warned of."""
    detail = f"{held} by the plan, {where} has {total / GIGABYTE:.1f}, {free / GIGABYTE:.1f} of it free"
    if needed > total:
        return Check(name, "fail", detail, hint)
    return Check(name, "ok", detail) if needed <= free else Check(name, "warn", detail, hint)


def disk_room(layout: RunLayout, needed: int) -> Check:
    free = free_bytes(layout.root)
    detail = f"the whole run writes at most {needed / GIGABYTE:.2f} GB by the plan, {free / GIGABYTE:.1f} are free at {layout.root}"
    if needed <= free:
        return Check("run's disk", "ok", detail)
    return Check("run's disk", "warn", detail, "a fuller disk stops a stage with exit 6 and loses nothing; --run names another place")
