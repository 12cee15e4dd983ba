"""The models that a run can be asked about: base, adapter, merged, or any folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import SafetensorError

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.base import load_base, load_folder, load_tokenizer, pick_device
from soka_cli.models.offload import adapting, computing_device, is_offloaded, whereabouts
from soka_cli.run.digest import file_digest, folder_digest, json_digest
from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest, StageRecord
from soka_cli.run.resources import is_memory_full
from soka_cli.run.stage import damaged_output
from soka_cli.run.write import damaged
from soka_cli.stages.context import StageContext
from soka_cli.stages.launch import Worker

Kind = Literal["base", "adapter", "merged", "other"]
KINDS: tuple[Kind, ...] = ("base", "adapter", "merged", "other")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class JudgedModel:
    """One model to ask. The base is loaded by the recipe; then `folder`, if any, is put over it (`is_adapter`) or taken instead.

    `served` is the name under which a server is said to serve it; it is then not loaded here.
    `adapter_sha256` is that of the adapter's weights (for merged: of the adapter that was merged), None for the base;
    `model_sha256` that of a whole model folder, None where there is none.
    """

    kind: Kind
    folder: Path | None = None
    is_adapter: bool = False
    adapter_sha256: str | None = None
    model_sha256: str | None = None
    served: str | None = None


def choose_models(context: StageContext, kinds: Sequence[str] | None, folder: Path | None, served: str | None = None) -> list[JudgedModel]:
    """The models to ask, in the order base, adapter, merged, other; `kinds` None takes all of the first three that exist.

    Where a server serves the model (`served`, its name there), `kinds` is the user's word for what that is, None other.

    Raises:
        SokaError: exit 2 for an unknown kind; exit 5 where one is missing, damaged or stale; exit 3 for a folder that holds no model.
    """
    if served is not None:
        return [served_model(context, kind, served, folder) for kind in kinds or ("other",)]
    wanted = list(kinds) if kinds is not None else [] if folder is not None else existing_kinds(context)
    if folder is not None and "other" not in wanted:
        wanted.append("other")
    if unknown := [kind for kind in wanted if kind not in KINDS or (kind == "other" and folder is None)]:
        raise SokaError(
            f"There is no model kind {unknown[0]}.",
            where="--model",
            hint="use --model base, adapter or merged, or the path of a model folder",
            exit_code=ExitCode.USAGE,
        )
    return [find_model(context, kind, folder) for kind in KINDS if kind in wanted]


def served_model(context: StageContext, kind: str, served: str, folder: Path | None) -> JudgedModel:
    """What a server serves, with the digests of the run's own model of that kind. Exit 2 for a folder: a server has its model loaded."""
    if folder is not None or kind not in KINDS:
        raise SokaError(
            f"A server's model is not chosen by --model {folder or kind}.",
            where="--model",
            hint="--served-model NAME chooses among those it serves; --model base, adapter or merged says which of the run's that is",
            exit_code=ExitCode.USAGE,
        )
    return replace(JudgedModel("other") if kind == "other" else find_model(context, cast(Kind, kind), None), served=served)


def existing_kinds(context: StageContext) -> list[str]:
    layout, tuned = context.layout, tuned_folder(context)
    return ["base", *(["adapter"] if tuned.is_dir() else []), *(["merged"] if layout.merged_model.is_dir() else [])]


def tuned_folder(context: StageContext) -> Path:
    """Where training leaves its result: an adapter, or under method full a whole model."""
    return context.layout.full_model if context.recipe.adapter.method == "full" else context.layout.adapter


def find_model(context: StageContext, kind: Kind, folder: Path | None) -> JudgedModel:
    """Locate one model and take its digests."""
    if kind == "base":
        return JudgedModel("base")
    if kind == "adapter":
        return find_tuned(context)
    if kind == "merged":
        return find_merged(context)
    return find_other(folder or Path())


def find_tuned(context: StageContext) -> JudgedModel:
    folder = tuned_folder(context)
    if not folder.is_dir():
        raise missing(folder, "There is no adapter yet.", "soka train", context)
    verify(context.layout, "train", folder)
    if context.recipe.adapter.method == "full":
        return JudgedModel("adapter", folder, model_sha256=contents_digest(context.layout, "train", folder))
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise damaged(folder / name, "the file is missing", "repeat the training: soka train --force")
    return JudgedModel("adapter", folder, is_adapter=True, adapter_sha256=file_digest(folder / ADAPTER_WEIGHTS))


def find_merged(context: StageContext) -> JudgedModel:
    """The merged model, unless it was made of another adapter than the run's present one."""
    folder = context.layout.merged_model
    if not folder.is_dir():
        raise missing(folder, "There is no merged model yet.", "soka merge", context)
    verify(context.layout, "merge", folder)
    adapter, weights = context.layout.adapter, context.layout.adapter / ADAPTER_WEIGHTS
    record = Manifest.read(context.layout.manifest).stages.get("merge")
    merged_from = record.inputs.get("adapter_sha256") if record is not None else None
    if merged_from is not None and adapter.is_dir() and (present := folder_digest(adapter)) != merged_from:
        raise SokaError(
            "The merged model is stale: it was made of another adapter than the one that is there now.",
            where=str(folder),
            why=f"digest of {adapter.name}: {merged_from[:12]} when merged, {present[:12]} now",
            hint=f"soka merge --run {context.layout.root} --force",
            exit_code=ExitCode.RUN,
        )
    digest = file_digest(weights) if weights.is_file() else None
    return JudgedModel("merged", folder, adapter_sha256=digest, model_sha256=contents_digest(context.layout, "merge", folder))


def find_other(folder: Path) -> JudgedModel:
    """A folder from outside the run: a whole model, or an adapter for the recipe's base."""
    if (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
        return JudgedModel("other", folder, is_adapter=True, adapter_sha256=file_digest(folder / ADAPTER_WEIGHTS))
    if not (folder / "config.json").is_file():
        raise SokaError(
            f"{folder} holds no model.",
            where=str(folder),
            why="neither config.json nor an adapter (adapter_config.json with adapter_model.safetensors) is there",
            hint="name base, adapter or merged, or a folder that transformers can load: --model ./my-model",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return JudgedModel("other", folder, model_sha256=folder_digest(folder))


def missing(folder: Path, what: str, command: str, context: StageContext) -> SokaError:
    return SokaError(what, where=str(folder), hint=f"{command} --run {context.layout.root}", exit_code=ExitCode.RUN)


def recorded(layout: RunLayout, stage: str, folder: Path) -> StageRecord | None:
    """The stage's record with those outputs alone that lie in `folder`; None where it lists none."""
    record = Manifest.read(layout.manifest).stages.get(stage)
    inside = [path for path in (record.outputs if record is not None else ()) if (layout.root / path.path).is_relative_to(folder)]
    return record.model_copy(update={"outputs": tuple(inside)}) if record is not None and inside else None


def verify(layout: RunLayout, stage: str, folder: Path) -> None:
    """Refuse a folder of the run whose files are not as its stage left them (exit 5, naming the file)."""
    record = recorded(layout, stage, folder)
    if record is not None and (error := damaged_output(layout, record)) is not None:
        raise error


def contents_digest(layout: RunLayout, stage: str, folder: Path) -> str:
    """`folder_digest`, taken from the stage's record (which was just verified) where there is one: a model is read once."""
    record = recorded(layout, stage, folder)
    if record is None:
        return folder_digest(folder)
    return json_digest({(layout.root / output.path).relative_to(folder).as_posix(): output.sha256 for output in record.outputs})


class ModelShelf:
    """Loads judged models one after another and holds one at a time; the base is kept for an adapter that goes over it."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        worker = Worker.here()
        worker.require_alone(context.recipe.model)
        self.device = worker.device(pick_device(context.device))
        self._bare_base: Any = None
        self._held: tuple[JudgedModel, Any, Any] | None = None

    def get(self, wanted: JudgedModel) -> tuple[Any, Any]:
        """Model (on the device, evaluation mode) and tokenizer."""
        if self._held is None or self._held[0] != wanted:
            self._held = None
            with self.context.reporter.task(f"load {wanted.kind}", total=1, unit="models") as progress:
                self._held = (wanted, self._model(wanted), self._tokenizer(wanted))
                progress.advance(1)
        return self._held[1], self._held[2]

    def _model(self, wanted: JudgedModel) -> Any:
        section = self.context.recipe.model
        if wanted.folder is not None and not wanted.is_adapter:
            self._bare_base = None
            return self._said(
                load_folder(
                    wanted.folder,
                    dtype=section.dtype,
                    device=self.device,
                    trust=section.trust_remote_code,
                    max_memory=section.max_memory,
                )
            )
        base = self._bare_base or self._said(load_base(section, device=self.device, offline=self.context.offline))
        if wanted.folder is None:
            self._bare_base = base
            return base
        self._bare_base = None
        return self._in_place(with_adapter(base, wanted.folder))

    def _in_place(self, adapted: Any) -> Any:
        """The adapted model as transformers has it: merged where that is exact to fp32 rounding, so that it answers at the base's speed."""
        if not merges_exactly(adapted):
            return adapted.get_base_model()
        self.context.reporter.say("The adapter is merged into the fp32 base in memory, which changes weights by rounding alone.")
        return adapted.merge_and_unload()

    def _said(self, model: Any) -> Any:
        """The model; where it lies is told, if that is in more places than one."""
        if is_offloaded(model):
            self.context.reporter.say(whereabouts(model))
        return model

    def _tokenizer(self, wanted: JudgedModel) -> Any:
        section = self.context.recipe.model
        if wanted.folder is not None and not wanted.is_adapter and wanted.kind != "adapter":
            section = section.model_copy(update={"name": str(wanted.folder), "revision": None})
        return load_tokenizer(section, offline=self.context.offline)


def merges_exactly(adapted: Any) -> bool:
    """Whether adding the adapter to the base's weights loses no more than fp32 rounding: a plain fp32 base under SoKA or LoRA."""
    kinds = {str(config.peft_type.value) for config in adapted.peft_config.values()}
    return kinds <= {"SOKA", "LORA"} and all(str(parameter.dtype) == "torch.float32" for parameter in adapted.parameters())


def with_adapter(base: Any, folder: Path) -> Any:
    """The base with the adapter of `folder` over it, as a PeftModel; SokaError (exit 5) where the two do not fit."""
    import peft

    import soka_cli.adapter  # noqa: F401 - registers SoKA with PEFT

    try:
        with adapting(base):
            return peft.PeftModel.from_pretrained(base, str(folder), torch_device=str(computing_device(base))).eval()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if is_memory_full(error):
            raise
        raise damaged(
            folder / ADAPTER_WEIGHTS,
            f"the adapter can't be put over the base: {str(error).strip()[:300]}",
            "train it again (soka train --force), or restore the folder from a copy",
        ) from error
