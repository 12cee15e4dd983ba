"""Stage export: the trained adapter for those who have no soka - stock LoKr terms, a LoRA, or its own PEFT folder, with a model card."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import load_file, save_file

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.snapshot import snapshot
from soka_cli.run.digest import file_digest, folder_digest
from soka_cli.run.resources import require_space
from soka_cli.run.write import atomic_folder, bytes_under, damaged, read_json, write_json, write_text
from soka_cli.stages.adapter_file import CONFIG, PREFIX, WEIGHTS
from soka_cli.stages.card import Card, card_text, carry_licences
from soka_cli.stages.context import StageContext
from soka_cli.stages.deltas import ADAPTER, Deltas
from soka_cli.stages.judged_model import find_tuned
from soka_cli.stages.lokr import Term, terms_of, write_terms
from soka_cli.stages.low_rank import LowRank, low_rank
from soka_cli.stages.outcome import Cell, Outcome, Table

Form = Literal["lokr", "lora", "peft"]
SCHEMA_VERSION = 1
RECORD = "export.json"
FORMS: dict[str, tuple[Form, ...]] = {
    "soka": ("lokr", "lora", "peft"),
    "lokr": ("lokr", "lora", "peft"),
    "lora": ("lora", "peft"),
    "pissa": ("lora", "peft"),
}
"""What an adapter of each method can be exported as; of any other method, peft."""
ROUNDING = 1e-6  # of the largest entry: fp32's own, where the same numbers are multiplied in another order

LOAD_PEFT = """
{register}from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE, revision=REVISION)
model = PeftModel.from_pretrained(base, FOLDER)
"""
REGISTER = "import soka_cli.adapter  # pip install soka-cli; registers SoKA with PEFT\n"
LOAD_TERMS = """
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE, revision=REVISION)
folder = Path(FOLDER)  # of a Hub repository: huggingface_hub.snapshot_download(repository)
terms = sorted(path.name for path in folder.glob("term-*"))
model = PeftModel.from_pretrained(base, folder / terms[0], adapter_name=terms[0])
for term in terms[1:]:
    model.load_adapter(folder / term, adapter_name=term)
model.base_model.set_adapter(terms)  # all at once: they add up
"""


@dataclass(frozen=True)
class Exported:
    """What one form came to: figures for export.json, rows for a person, and the card."""

    card: Card
    figures: dict[str, Any]
    rows: tuple[tuple[Cell, ...], ...] = ()
    columns: tuple[str, ...] = field(default=("", "value"))


def export(context: StageContext, form: Form, out: Path, *, rank: int | None = None, energy: float | None = None) -> Outcome:
    """Write the adapter to `out` in a form that stock PEFT reads; the folder is whole or not there.

    lokr: each term of K(theta) and of -K(theta0) as a LoKr adapter of its own, exact. lora: the update's truncated SVD, exact where
    the rank is the update's own, else with its error stated. peft: the adapter as training left it. All with README.md, a model
    card, and export.json.

    Args:
        out: a folder that is not there, empty, or an earlier export (replaced under `force`, where it is another).
        rank: for lora, terms a module keeps.
        energy: for lora, instead: share of each update's squared norm that is kept.

    Raises:
        SokaError: exit 2 for options or shapes that do not go together, 5 where the run has no intact adapter or `out` is something
            else, 6 for the disk, 8 where what was written does not add up to the adapter.
    """
    require_form(context, form, rank, energy)
    adapter = find_tuned(context).folder
    assert adapter is not None
    inputs = {
        "as": form,
        "rank": rank,
        "energy": energy,
        "adapter_sha256": folder_digest(adapter),
        "revision": context.recipe.model.revision,
    }
    if (earlier := earlier_export(out, inputs, force=context.force)) is not None:
        return outcome(context, out, earlier, "already done")
    require_space(out, bytes_under(adapter))
    with atomic_folder(out) as folder:
        made = write_form(context, form, adapter, folder, rank=rank, energy=energy)
        base = base_folder(context)
        licences = carry_licences(base, folder)
        write_text(folder / "README.md", card_text(context, made.card, base=base, licences=licences, folder=out.name))
        files = {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        record = {"schema_version": SCHEMA_VERSION, "inputs": inputs, **made.figures, "table": table_record(made), "files": files}
        write_json(folder / RECORD, record)
    return outcome(context, out, record, "done")


def require_form(context: StageContext, form: Form, rank: int | None, energy: float | None) -> None:
    """Exit 2 for a form that the method has not, or options that the form does not read or lacks."""
    method = context.recipe.adapter.method
    if method == "full":
        raise usage(
            "method full has no adapter to export", "--as", f"the whole model is {context.layout.full_model}, an ordinary model folder"
        )
    if form not in (there := FORMS.get(method, ("peft",))):
        raise usage(f"an adapter of method {method} has no form {form}", "--as", " or ".join(f"--as {one}" for one in there))
    if form == "lora" and (rank is None) == (energy is None):
        raise usage("--as lora takes a rank or an energy, one of them", "--as lora", "--rank 16, or --energy 0.99")
    if form != "lora" and (rank is not None or energy is not None):
        raise usage(f"--as {form} reads no {'--rank' if rank is not None else '--energy'}", f"--as {form}", "drop it, or export --as lora")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise usage(f"--energy is {energy:g}", "--energy", "a share above 0 and at most 1, e.g. 0.99")


def usage(what: str, where: str, hint: str) -> SokaError:
    return SokaError(what, where=where, hint=hint, exit_code=ExitCode.USAGE)


def earlier_export(out: Path, inputs: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The record of the same export that lies there whole; None where it is to be written. Nothing but an export is ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RECORD).is_file():
        raise SokaError(
            f"{out} is there already, and is no export of soka",
            where="--out",
            hint="name a folder that is not there",
            exit_code=ExitCode.RUN,
        )
    record = read_json(out / RECORD)
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise damaged(out / RECORD, "it has no schema_version that this soka reads", "remove the folder, or name another --out")
    whole = all((out / name).is_file() and file_digest(out / name) == digest for name, digest in record["files"].items())
    if record["inputs"] == inputs and whole:
        return record
    if force:
        return None
    raise SokaError(
        f"{out} holds another export" if whole else f"{out} holds an export that was changed since",
        where="--out",
        why=", ".join(f"{name}: {record['inputs'].get(name)} there, {value} asked" for name, value in inputs.items()) if whole else "",
        hint="repeat with --force to replace it, or name another --out",
        exit_code=ExitCode.RUN,
    )


def base_folder(context: StageContext) -> Path | None:
    """The base's config and small files where they are at hand or can be had; None where not."""
    model = context.recipe.model
    try:
        return snapshot(model.name, revision=model.revision, offline=context.offline, weights=False)
    except SokaError:
        return None


def write_form(context: StageContext, form: Form, adapter: Path, folder: Path, *, rank: int | None, energy: float | None) -> Exported:
    method: str = context.recipe.adapter.method
    if form == "peft" or (form == "lokr" and method == "lokr"):
        return copied(method, adapter, folder)
    model = context.recipe.model
    base = snapshot(model.name, revision=model.revision, offline=context.offline, weights=False)
    deltas = Deltas(adapter, base, trust=model.trust_remote_code)
    return as_terms(context, deltas, folder) if form == "lokr" else as_lora(context, deltas, folder, rank=rank, energy=energy)


def copied(method: str, adapter: Path, folder: Path) -> Exported:
    """The PEFT folder as training left it."""
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / name, folder / name)
    soka = method == "soka"
    form = "One adapter in PEFT's form. " + ("PEFT knows SoKA once `soka_cli.adapter` is imported." if soka else "Stock PEFT loads it.")
    card = Card(f"An adapter of method {method}", form, LOAD_PEFT.format(register=REGISTER if soka else ""), ("soka", method))
    return Exported(card, {"relative_error": 0.0})


# ---- as LoKr


def as_terms(context: StageContext, deltas: Deltas, folder: Path) -> Exported:
    """One folder a term; read back and added up against the adapter's own update."""
    if turned := [name for name, layer in deltas.layers.items() if layer.fan_in_fan_out]:
        raise usage(
            f"LoKr has no layer for GPT-2's Conv1D, which {len(turned)} modules are, the first is {turned[0]}",
            "--as lokr",
            "export with --as lora --rank R, or --as peft",
        )
    terms = {name: terms_of(layer.factors(ADAPTER), layer.start_factors(ADAPTER)) for name, layer in deltas.layers.items()}
    terms = {name: [Term(one.left.detach(), one.right.detach()) for one in held] for name, held in terms.items()}
    model = context.recipe.model
    written = write_terms(folder, terms, base=model.name, revision=model.revision)
    error = term_error(deltas, folder, written)
    form = (
        f"{len(written)} LoKr adapters, `term-...`: each is one term of the trained Kronecker sum, or of the one that training started "
        "from with its sign turned. All of them active at once add up to the trained update, exactly but for fp32 rounding "
        f"(largest relative difference {error:.1e}). Stock PEFT loads them; soka is not needed."
    )
    card = Card("A SoKA adapter as LoKr terms", form, LOAD_TERMS, ("soka", "lokr"))
    rows: tuple[tuple[Cell, ...], ...] = (("LoKr adapters", len(written)), ("modules", len(terms)), ("largest relative difference", error))
    return Exported(card, {"adapters": {name: len(names) for name, names in written.items()}, "relative_error": error}, rows)


def term_error(deltas: Deltas, folder: Path, written: Mapping[str, list[str]]) -> float:
    """The largest difference between the written terms' sum and the update, as a share of the update's largest entry (of the terms',
    which cancel, where that is larger). Exit 8 where it is more than rounding."""
    largest = 0.0
    for module in deltas.modules:
        total, scale = torch.zeros(deltas.layers[module].out_features, deltas.layers[module].in_features), 0.0
        for name in (name for name, names in written.items() if module in names):
            tensors = load_file(folder / name / WEIGHTS)
            term = torch.kron(*(tensors[f"{PREFIX}{module}.lokr_{part}"] for part in ("w1", "w2")))
            total += term
            scale = max(scale, float(term.abs().max()))
        difference = float((total - deltas.delta(module)).abs().max())
        largest = max(largest, difference / scale if scale else difference)
    if not largest <= ROUNDING:
        raise SokaError(
            "the written terms do not add up to the adapter",
            where=str(folder),
            why=f"they differ by {largest:.3g} of the largest entry",
            hint="check the disk, then give the same command again",
            exit_code=ExitCode.CHECK,
        )
    return largest


# ---- as LoRA


def as_lora(context: StageContext, deltas: Deltas, folder: Path, *, rank: int | None, energy: float | None) -> Exported:
    """The truncated SVD of each module's update, one module at a time."""
    found: dict[str, LowRank] = {}
    with context.reporter.task("export as LoRA", total=len(deltas.modules), unit="modules") as task:
        for name in deltas.modules:
            found[name] = low_rank(deltas.matrix(name), rank=rank, energy=energy, seed=context.recipe.seed)
            task.advance(1, rank=found[name].rank)
    kept = {name: one for name, one in found.items() if one.rank}
    if not kept:
        raise usage("the adapter adds nothing: every module's update is zero", "--as lora", "train it first, or export --as peft")
    turned = any(getattr(deltas.layers[name], "fan_in_fan_out", False) for name in kept)
    lora_config(context, kept, turned=turned).save_pretrained(str(folder))
    tensors = {
        f"{PREFIX}{name}.lora_{part}.weight": held for name, one in kept.items() for part, held in (("A", one.right), ("B", one.left))
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    norm = sum(one.norm**2 for one in found.values()) ** 0.5
    error = sum(one.error**2 for one in found.values()) ** 0.5 / norm
    modules = {name: {"rank": one.rank, "relative_error": one.relative_error} for name, one in found.items()}
    ranks = sorted({one.rank for one in found.values()})
    form = (
        f"One LoRA adapter of rank {ranks[0]}{f' to {ranks[-1]}' if len(ranks) > 1 else ''}: in each module the nearest product to "
        f"the trained update, by its singular value decomposition. It leaves out {error:.3%} of the update's norm over all modules, and at "
        f"most {max(one.relative_error for one in found.values()):.3%} in one; `{RECORD}` lists them. Stock PEFT loads it; soka is not "
        "needed."
    )
    card = Card("A trained update as LoRA", form, LOAD_PEFT.format(register=""), ("soka", "lora"))
    parameters = sum(one.left.numel() + one.right.numel() for one in kept.values())
    rows = [*((name, one.rank, one.relative_error) for name, one in found.items()), ("in all", None, error)]
    columns = ("module", "rank", "relative error")
    return Exported(card, {"modules": modules, "parameters": parameters, "relative_error": error}, tuple(rows), columns)


def lora_config(context: StageContext, kept: Mapping[str, LowRank], *, turned: bool) -> LoraConfig:
    """alpha = r everywhere, so that B A is added as it is."""
    ranks = {name: one.rank for name, one in kept.items()}
    usual = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != usual}
    model = context.recipe.model
    return LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=other,
        alpha_pattern=other,
        target_modules=list(ranks),
        fan_in_fan_out=turned,
        lora_dropout=0.0,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=model.name,
        revision=model.revision,
        inference_mode=True,
    )


# ---- what is told


def table_record(made: Exported) -> dict[str, Any]:
    return {"columns": list(made.columns), "rows": [list(row) for row in made.rows]}


def outcome(context: StageContext, out: Path, record: dict[str, Any], status: Literal["done", "already done"]) -> Outcome:
    shown, form = record["table"], record["inputs"]["as"]
    files = sorted(record["files"])
    figures = {key: value for key, value in record.items() if key not in ("table", "files", "schema_version")}
    tables = (Table(f"Exported as {form}", tuple(shown["columns"]), tuple(tuple(row) for row in shown["rows"])),) if shown["rows"] else ()
    notes = (f"{len(files)} files in {out}; README.md is its model card, with the lines that load it",)
    return Outcome("export", status, context.layout.root, {"out": str(out), **figures, "files": files}, tables, notes)
