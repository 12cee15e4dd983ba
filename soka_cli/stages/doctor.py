"""What this machine has, and whether a recipe can run on it."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.packing_kind import BITSANDBYTES
from soka_cli.recipe.places import shown
from soka_cli.run.environment import describe_environment, memory_bytes, processors
from soka_cli.run.resources import available_memory, existing_parent, free_bytes
from soka_cli.sandbox import no_isolation
from soka_cli.sandbox.isolation import advice, find_isolation, passes, stops, summary
from soka_cli.stages.check import Check, attempt
from soka_cli.stages.context import StageContext
from soka_cli.stages.doctor_hub import hub_check
from soka_cli.stages.doctor_processes import process_check
from soka_cli.stages.doctor_sources import source_checks
from soka_cli.stages.doctor_training import quantization_check, training_checks
from soka_cli.stages.doctor_verbs import verb_rows
from soka_cli.stages.installed import Package, constraints_file, packages, python_problem
from soka_cli.stages.outcome import Outcome, Table

GIGABYTE = 10**9
LITTLE_DISK = 5 * GIGABYTE  # a 7B model's adapter checkpoints fit; the model itself and a merged copy need 13.5 GB each


def doctor(context: StageContext | None = None, *, device: str = "auto", offline: bool = False, processes: int = 1) -> Outcome:
    """Look at packages, device, memory, disk, caches, the Hub and how processes talk; with a recipe also at all that it needs.

    Args:
        context: a recipe to judge, None for the machine alone.
        device: auto, cpu or cuda[:k].
        offline: whether what lies on the Hub alone counts as missing.
        processes: so many are started and have to add up a number together.

    Raises:
        SokaError: exit 3, a recipe was given and cannot run here; `why` lists all that stands against it.
    """
    found = packages()
    hub = hub_check(offline)
    checks = [*machine_checks(found, device), hub, process_check(processes)]
    if context is not None:
        checks += [*recipe_checks(context, offline, reachable=hub.status == "ok"), *training_checks(context, device)]
    verbs = verb_rows(checks, context)
    failed = [check for check in checks if check.status == "fail"]
    if context is not None and failed:
        raise SokaError(
            f"Recipe {context.loaded.name} cannot run here.",
            where=str(context.loaded.path or context.loaded.name),
            why="\n".join(f"{check.name}: {check.detail}" for check in failed),
            hint="\n".join(dict.fromkeys(check.hint for check in failed if check.hint)),
            exit_code=ExitCode.ENVIRONMENT,
        )
    return Outcome(
        stage="doctor",
        status="done",
        run=None,
        figures={
            "checks": [asdict(check) for check in checks],
            "packages": [asdict(package) for package in found],
            "verbs": dict(verbs),
            "environment": describe_environment(),
        },
        tables=(
            Table("Checks", ("", "what", "found"), tuple((check.status, check.name, check.detail) for check in checks)),
            Table("What each verb does here", ("verb", "therefore"), verbs),
            Table("Packages", ("package", "installed", "tested", "allowed", "for"), tuple(map(package_row, found))),
        ),
        notes=tuple(f"{check.name}: {check.hint}" for check in checks if check.status != "ok" and check.hint),
        next_commands=() if failed else ("soka demo",) if context is None else (f"soka plan --recipe {named(context)}",),
    )


def named(context: StageContext) -> str:
    """The recipe as a command names it."""
    return context.loaded.name if context.loaded.path is None else shown(context.loaded.path, Path.cwd())


def package_row(package: Package) -> tuple[str | None, ...]:
    return package.name, package.installed, package.tested, package.allowed, package.extra or "everything"


def machine_checks(found: Iterable[Package], device: str) -> list[Check]:
    """What does not depend on a recipe."""
    return [
        package_check(list(found)),
        optional_check(list(found)),
        device_check(device),
        quantization_check(),
        memory_check(),
        disk_check(Path("runs")),
        *cache_checks(),
        sandbox_check(),
    ]


def package_check(found: list[Package]) -> Check:
    """Needed packages: present, in a version that is allowed, and in the one that the tests ran with."""
    problems = [f"{package.name}: {package.problem}" for package in found if package.problem and not package.extra]
    if problem := python_problem():
        problems.append(problem)
    if not found:
        problems.append("soka-cli is not installed as a package, so its requirements are unknown")
    if problems:
        return Check("packages", "fail", "; ".join(problems), "make install, or pip install --force-reinstall soka-cli")
    untested = [f"{package.name} {package.installed} (tested {package.tested})" for package in found if package.untested]
    if untested:
        return Check(
            "packages", "warn", f"allowed, but not the versions of the tests: {', '.join(untested)}",
            f"pip install --constraint {constraints_file()} soka-cli takes the tested ones",
        )  # fmt: skip
    return Check("packages", "ok", f"all {sum(not package.extra for package in found)} are installed in versions that are allowed")


def optional_check(found: list[Package]) -> Check:
    """Extras: what is there, what is not, and which are of a version that does not fit."""
    optional = [package for package in found if package.extra]
    if wrong := [package for package in optional if package.problem]:
        extras = ",".join(dict.fromkeys(package.extra for package in wrong))
        problems = "; ".join(f"{package.name}: {package.problem}" for package in wrong)
        return Check("optional packages", "warn", problems, f"pip install --upgrade 'soka-cli[{extras}]'")
    there = ", ".join(package.name for package in optional if package.installed) or "none"
    absent = ", ".join(f"{package.name} ({package.extra})" for package in optional if not package.installed)
    return Check("optional packages", "ok", f"installed: {there}" + (f"; not installed: {absent}" if absent else ""))


def find_device(choice: str) -> str:
    from soka_cli.models.base import pick_device

    return pick_device(choice)


def device_check(device: str) -> Check:
    """The device that stages would take, and what it has."""
    chosen = attempt("device", lambda: find_device(device))
    if isinstance(chosen, Check):
        return chosen
    import torch

    if chosen == "cpu":
        threads = torch.get_num_threads()
        detail = f"cpu, {processors()} cores, {threads} threads, torch {torch.__version__}"
        if threads > processors():
            return Check("device", "warn", detail, f"more threads than cores slow everything down: export OMP_NUM_THREADS={processors()}")
        return Check("device", "ok", detail)
    free, total = torch.cuda.mem_get_info(chosen)
    memory = f"{free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
    detail = f"{chosen}, {torch.cuda.get_device_name(chosen)}, {memory}, torch {torch.__version__}"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Check("device", "warn", f"{detail}, no bfloat16", "set train.precision=fp32 and model.dtype=float16")
    return Check("device", "ok", detail)


def memory_check() -> Check:
    available = available_memory()
    detail = f"{memory_bytes() / GIGABYTE:.1f} GB" + (f", {available / GIGABYTE:.1f} GB of it available" if available is not None else "")
    if available is not None and available < GIGABYTE:
        return Check("memory", "warn", detail, "close other programs; the demo alone takes 1 GB")
    return Check("memory", "ok", detail)


def disk_check(folder: Path) -> Check:
    """Free space where run directories lie."""
    free = free_bytes(folder)
    detail = f"{free / GIGABYTE:.1f} GB free for {folder}/"
    return Check("disk", "ok", detail) if free >= LITTLE_DISK else Check("disk", "warn", detail, "soka clean removes set-aside stages")


def cache_folders() -> dict[str, tuple[Path, str]]:
    """Folders that the libraries write to, and the variable that moves each."""
    import datasets.config
    import huggingface_hub.constants

    return {
        "model cache": (Path(huggingface_hub.constants.HF_HUB_CACHE), "HF_HOME"),
        "data cache": (Path(datasets.config.HF_DATASETS_CACHE), "HF_HOME"),
        "temporary files": (Path(tempfile.gettempdir()), "TMPDIR"),
    }


def cache_checks() -> list[Check]:
    folders = attempt("caches", cache_folders)
    if isinstance(folders, Check):
        return [folders]
    return [cache_check(name, folder, variable) for name, (folder, variable) in folders.items()]


def cache_check(name: str, folder: Path, variable: str) -> Check:
    if os.access(existing_parent(folder), os.W_OK | os.X_OK):
        return Check(name, "ok", f"{folder}, {free_bytes(folder) / GIGABYTE:.1f} GB free")
    return Check(name, "warn", f"{folder} cannot be written", f"point it at a folder of yours: export {variable}=FOLDER")


def sandbox_check() -> Check:
    """What isolates model-written programs here, tried out; how to get more where it is not the strongest layer."""
    found = find_isolation()
    if found.layer is None:
        why = "; ".join(f"{name}: {why}" for name, why in found.refused)
        return Check("sandbox", "warn", f"none, so mbpp and humaneval are not judged here ({why})", advice(found))
    detail = f"{summary(found)}. Stops {'; '.join(stops(found))}. Does not stop {'; '.join(passes(found))}"
    return Check("sandbox", "warn" if advice(found) else "ok", detail, advice(found))


def recipe_checks(context: StageContext, offline: bool, *, reachable: bool = True) -> list[Check]:
    """Whether the recipe's model, data and benchmarks can be had here."""
    recipe = context.recipe
    return [
        model_check(context, offline, reachable=reachable),
        *packing_checks(recipe.model.quantization),
        *source_checks(recipe, reachable=reachable and not offline),
        *(task_check(number, entry.task) for number, entry in enumerate(recipe.eval)),
    ]


def model_check(context: StageContext, offline: bool, *, reachable: bool = True) -> Check:
    """The base model: whole on this machine, else within reach. A gated or missing one shows by its small files."""
    from soka_cli.models.snapshot import snapshot

    section = context.recipe.model
    here = attempt("model", lambda: snapshot(section.name, revision=section.revision, offline=True))
    if isinstance(here, Check):
        if offline:
            return here
        if not reachable:
            hint = f"hf download {section.name}, where there is a network, and the folder here: model.name=FOLDER"
            return Check("model", "fail", f"{section.name} is not on this machine, and the Hub does not answer", hint)
        reached = attempt("model", lambda: snapshot(section.name, revision=section.revision, offline=False, weights=False))
        if isinstance(reached, Check):
            return reached
        return Check("model", "warn", f"{section.name} is not here yet; the first stage downloads it", f"hf download {section.name}")
    weights = sum(path.stat().st_size for path in here.glob("*.safetensors"))
    available = available_memory()
    detail = f"{section.name}, {weights / GIGABYTE:.2f} GB of weights on this machine"
    if available is not None and weights > available:
        return Check("model", "warn", f"{detail}, more than the main memory that is available", "it may still fit on a GPU: see soka plan")
    return Check("model", "ok", detail)


def packing_checks(kind: str) -> list[Check]:
    """Whether weights can be packed as the recipe asks; nothing where it does not ask."""
    if kind == "none":
        return []
    found = attempt("quantization", lambda: version(BITSANDBYTES))
    if isinstance(found, Check):
        hint = 'pip install "soka-cli[quant]", or model.quantization=none'
        return [Check("quantization", "fail", f"{kind} needs {BITSANDBYTES}, which is not installed", hint)]
    return [Check("quantization", "ok", f"{kind} by {BITSANDBYTES} {found}")]


def task_check(number: int, task: str) -> Check:
    from soka_cli.tasks.base import task_named
    from soka_cli.tasks.code_task import CodeTask

    name = f"eval.{number}.task"
    if isinstance(task_named(task), CodeTask) and find_isolation().layer is None:
        return Check(name, "fail", f"{task} runs model-written programs, and nothing isolates them here", no_isolation().hint)
    return Check(name, "ok", task)
