"""Stage merge: base plus adapter as an ordinary model folder, read back and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ContextManager, Literal

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.resolved import to_yaml
from soka_cli.run.digest import folder_digest
from soka_cli.run.resources import require_space
from soka_cli.run.stage import Stage, open_stage
from soka_cli.run.write import atomic_folder, damaged, read_json, write_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Cell, Outcome, Table

if TYPE_CHECKING:
    from soka_cli.models.checkpoint import Checkpoint
    from soka_cli.stages.parity import Parity

Check = Literal["logits", "weights"]
Dtype = Literal["float32", "bfloat16", "float16"]


def merge(context: StageContext, check: Check = "logits", dtype: Dtype | None = None) -> Outcome:
    """Write merge/model and merge/parity.json: W + K(theta) - K(theta0) in fp32 from the pristine base, rounded once.

    Always from the base checkpoint, never from a merged one, so nothing is added twice. Method full has nothing to add:
    its model is train/model, and only parity.json is written.

    Args:
        check: weights compares what was stored with what should be; logits also asks both models (needs memory for the model in fp32).
        dtype: type that all floating tensors are stored in; None keeps the base's.

    Raises:
        SokaError: exit 5 (no adapter, or one that does not fit the base), 6 (disk, memory), 8 (a comparison failed).
    """
    if context.recipe.adapter.method == "full":
        return merge_full(context)
    from soka_cli.models.checkpoint import Checkpoint
    from soka_cli.models.device import pick_device
    from soka_cli.models.snapshot import snapshot

    device = pick_device(context.device)
    layout, section = context.layout, context.recipe.model
    require_trained(context, layout.adapter / "adapter_config.json")
    base = Checkpoint(snapshot(section.name, revision=section.revision, offline=context.offline))
    inputs = {"adapter_sha256": folder_digest(layout.adapter), "base": base.digest} | ({"dtype": dtype} if dtype else {})
    with opened(context, inputs) as stage:
        if not stage.done:
            parity = merged_model(context, base, device, check, dtype)
            write_json(layout.parity, parity)
            stage.finish([layout.merged_model, layout.parity], {"device": device, "check": check})
    return outcome(context, "already done" if stage.done else "done")


def opened(context: StageContext, inputs: dict[str, Any]) -> ContextManager[Stage]:
    return open_stage(
        context.layout,
        "merge",
        inputs,
        recipe_yaml=to_yaml(context.recipe),
        source_text=context.loaded.source_text,
        command=context.command,
        force=context.force,
        folders=[context.layout.merge],
        reporter=context.reporter,
    )


def require_trained(context: StageContext, path: Path) -> None:
    """Exit 5, wrong order, where training has not left what is merged."""
    if not path.is_file():
        raise SokaError(
            "there is nothing to merge yet: the run directory holds no trained adapter or model",
            where=str(path),
            hint=f"soka train --run {context.layout.root}",
            exit_code=ExitCode.RUN,
        )


def merged_model(context: StageContext, base: "Checkpoint", device: str, check: Check, dtype: Dtype | None) -> dict[str, Any]:
    """Write, read back and compare aside; the folder gets its name only when all of it agrees. Returns parity.json.

    transformers and PEFT are imported after the weights are written, unless base or adapter needs them: the pass over the weights
    takes torch's memory and a little more.
    """
    from soka_cli.stages.merging import Merge, needed_bytes, read_back, write_model

    layout, reporter = context.layout, context.reporter
    needed = needed_bytes(base, dtype)
    require_space(layout.merged_model, needed)
    if check == "logits":
        require_memory(base.parameters, device)
    work = Merge.of(base, layout.adapter, dtype, trust=context.recipe.model.trust_remote_code)
    with atomic_folder(layout.merged_model, needed=needed) as folder:
        with reporter.task("merge", total=len(base.names), unit="weights") as task:
            write_model(work, folder, task)
        with reporter.task("read back", total=len(base.names), unit="weights") as task:
            error = read_back(work, folder, task)
        found = logits_compared(context, folder, work.dtype, device) if check == "logits" else None
    return {
        "max_abs_weight_error": error,
        "max_abs_logit_error": found.max_abs_logit_error if found else None,
        "top1_agreement": found.top1_agreement if found else None,
        "dtype": work.dtype,
        "logit_tolerance": found.tolerance if found else None,
        "positions": found.positions if found else None,
        "modules": work.modules,
    }


def logits_compared(context: StageContext, folder: Path, dtype: str, device: str) -> "Parity":
    from soka_cli.stages.parity import compare

    return compare(context, folder, dtype, device)


def require_memory(parameters: int, device: str) -> None:
    """Refuse early (exit 6) where one copy of the model in fp32, 4 bytes a parameter, does not fit on the device."""
    from soka_cli.models.device import free_memory

    needed = 4 * parameters
    free = free_memory(device)
    if free is not None and free < needed:
        raise SokaError(
            f"comparing logits needs {needed} bytes of memory for the model in fp32, {free} are free",
            where=device,
            hint="soka merge --check weights compares the stored weights alone; or take another --device",
            exit_code=ExitCode.RESOURCES,
        )


def merge_full(context: StageContext) -> Outcome:
    """Method full: train/model is the whole model already; parity.json says so, with nothing added and nothing compared."""
    from soka_cli.models.checkpoint import Checkpoint

    layout = context.layout
    require_trained(context, layout.full_model / "config.json")
    model = Checkpoint(layout.full_model)
    with opened(context, {"model": model.digest}) as stage:
        if not stage.done:
            dtype = ",".join(sorted({str(model.dtype(name)).removeprefix("torch.") for name in model.names}))
            parity = {"max_abs_weight_error": 0.0, "max_abs_logit_error": None, "top1_agreement": None, "dtype": dtype}
            write_json(layout.parity, parity | {"model": layout.full_model.relative_to(layout.root).as_posix()})
            stage.finish([layout.parity])
    return outcome(context, "already done" if stage.done else "done")


def outcome(context: StageContext, status: Literal["done", "already done"]) -> Outcome:
    """Figures and table, read back from parity.json."""
    layout = context.layout
    parity = read_json(layout.parity)
    if not isinstance(parity, dict) or "max_abs_weight_error" not in parity:
        raise damaged(layout.parity, "it has no max_abs_weight_error")
    full = context.recipe.adapter.method == "full"
    model = layout.full_model if full else layout.merged_model
    compared = parity["max_abs_logit_error"] is not None
    rows: list[tuple[Cell, ...]] = [
        ("largest weight error (one rounding)", parity["max_abs_weight_error"]),
        ("type of the weights", parity["dtype"]),
    ]
    if compared:
        rows += [
            ("largest logit difference, fp32", parity["max_abs_logit_error"]),
            ("tolerated", parity.get("logit_tolerance")),
            ("same first choice", f"{parity['top1_agreement']:.2%} of {parity.get('positions')} positions"),
        ]
    notes = ["merge: nothing to do, this adapter is merged"] if status == "already done" else []
    notes.append(f"method full has nothing to merge: the model is {model}" if full else f"the merged model is {model}")
    if not full and not compared:
        notes.append("logits were not compared (--check weights)")
    if (kind := context.recipe.model.quantization) != "none" and not full:
        notes.append(f"the adapter was trained over {kind} weights and is merged into the float ones: evaluate the merged model by itself")
    figures = {"model": str(model), **parity}
    table = Table("Merged against base and adapter", ("", "value"), tuple(rows))
    return Outcome("merge", status, layout.root, figures, (table,), tuple(notes), (f"soka eval --run {layout.root} --model merged",))
