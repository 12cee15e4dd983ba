"""The verbs: parse, call the stage, hand its outcome to the renderer.

A stage, and torch with it, is imported after the recipe was read: a mistake in a recipe shows at once.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from soka_cli.cli.request import Request
from soka_cli.cli.verb import verb

if TYPE_CHECKING:
    from soka_cli.run.reporter import Reporter
    from soka_cli.stages.outcome import Outcome

UnsafeExecution = Annotated[bool, typer.Option("--unsafe-execution", help="Run model-written programs even where nothing isolates them.")]

Backend = Annotated[Literal["hf", "vllm"], typer.Option("--backend", help="Who answers: transformers here, or a server.")]
ServerUrl = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Address of an OpenAI-compatible server, e.g. http://localhost:8000/v1.")
]
ServedName = Annotated[str | None, typer.Option("--served-model", metavar="NAME", help="The model's name there (default: its only one).")]

app = typer.Typer(
    name="soka",
    help="Fine-tune language models with SoKA: factors from the Kronecker SVD of each weight, ranks from its spectrum.",
    epilog="Start with: soka demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def show_version(wanted: bool) -> None:
    if wanted:
        from soka_cli import __version__
        from soka_cli.cli.render import print_text

        print_text(f"soka {__version__}")
        raise typer.Exit


@app.callback()
def soka(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and leave.")] = False,
) -> None:
    """Fine-tune language models with SoKA: factors from the Kronecker SVD of each weight, ranks from its spectrum."""


@verb(
    app,
    "plan",
    examples=(
        "soka plan -r gsm8k.yaml",
        "soka plan -r gsm8k.yaml adapter.target_modules=all-linear",
        "soka plan -r gsm8k.yaml --show-data 3",
        "soka plan -r gsm8k.yaml --num-processes 8 --tokens-per-s 20000",
    ),
    without=("force", "device"),
)
def plan(
    request: Request,
    reporter: "Reporter",
    show_data: Annotated[
        int, typer.Option("--show-data", metavar="N", min=0, help="Show N rows of each source as the model sees them; fetches them.")
    ] = 0,
    num_processes: Annotated[int, typer.Option("--num-processes", metavar="N", min=1, help="GPUs that share the training.")] = 1,
    tokens_per_s: Annotated[
        float | None, typer.Option("--tokens-per-s", metavar="X", min=1e-9, help="Speed of all GPUs together (default: this run's own).")
    ] = None,
) -> "Outcome":
    """Say what a recipe will cost - parameters, steps, memory - without weights or network."""
    context = request.context(reporter, last_run=True)
    from soka_cli.stages.plan import plan as stage

    return stage(context, show_data=show_data, processes=num_processes, tokens_per_s=tokens_per_s)


Processes = Annotated[int, typer.Option("--num-processes", metavar="N", min=1, help="Processes on this machine that share the work.")]


@verb(
    app,
    "decompose",
    examples=(
        "soka decompose -r gsm8k.yaml",
        "soka decompose -r gsm8k.yaml adapter.rank.parameters=2M --force",
        "soka decompose -r gsm8k.yaml --num-processes 4",
    ),
)
def decompose(request: Request, reporter: "Reporter", num_processes: Processes = 1) -> "Outcome | None":
    """Decompose the base's target weights into Kronecker terms and choose each module's rank."""
    context = request.context(reporter)
    from soka_cli.stages.launch import in_processes

    if in_processes(request.command, num_processes):
        return None
    from soka_cli.stages.decompose import decompose as stage

    return stage(context)


@verb(
    app,
    "train",
    examples=(
        "soka train --recipe gsm8k.yaml",
        "soka train -r gsm8k.yaml train.lr=1e-3 train.steps=500",
        "soka train -r gsm8k.yaml --num-processes 8",
    ),
)
def train(request: Request, reporter: "Reporter", num_processes: Processes = 1) -> "Outcome | None":
    """Train the adapter; goes on from the last checkpoint by itself."""
    context = request.context(reporter)
    from soka_cli.stages.launch import in_processes

    if in_processes(request.command, num_processes):
        return None
    from soka_cli.stages.train import train as stage

    return stage(context)


@verb(
    app,
    "eval",
    examples=(
        "soka eval",
        "soka eval --model adapter --show 5",
        "soka eval --model ./my-model eval.0.limit=100",
        "soka eval --model merged --backend vllm --url http://localhost:8000/v1",
        "soka eval eval.0.samples=10 eval.0.temperature=0.8 --num-processes 2",
    ),
)
def evaluate(
    request: Request,
    reporter: "Reporter",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="base|adapter|merged|FOLDER", help="What to judge (default: all three that exist)."),
    ] = None,
    backend: Backend = "hf",
    url: ServerUrl = None,
    served_model: ServedName = None,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Show N wrong and N right answers.")] = 0,
    unsafe_execution: UnsafeExecution = False,
    num_processes: Processes = 1,
) -> "Outcome | None":
    """Ask the benchmarks and judge the answers; goes on where it stopped."""
    from soka_cli.stages.server_choice import ServerChoice

    server = ServerChoice.of(backend, url, served_model)
    context = replace(request.context(reporter, last_run=True), unsafe_execution=unsafe_execution)
    from soka_cli.stages.launch import in_processes

    if in_processes(request.command, num_processes):
        return None
    from soka_cli.stages.evaluate import evaluate as stage

    kinds = None if model is None else [model] if model in ("base", "adapter", "merged") else []
    folder = Path(model) if model is not None and not kinds else None
    return stage(context, kinds=kinds, folder=folder, show=show, server=server)


@verb(
    app,
    "score",
    examples=("soka score --task gsm8k completions.jsonl", "soka score --task gsm8k --out scores/ completions.jsonl --json"),
    without=("overrides", "recipe", "run", "device", "force", "offline"),
)
def score(
    request: Request,
    reporter: "Reporter",
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Lines of {id, completion, gold}, or the tests in place of gold.")],
    task: Annotated[str, typer.Option("--task", metavar="gsm8k|math|mbpp|humaneval", help="The benchmark that judges.")],
    protocol: Annotated[str | None, typer.Option("--protocol", metavar="NAME", help="Whose stop strings cut the completion.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write predictions.jsonl and scores.json here.")] = None,
    pass_at: Annotated[list[int] | None, typer.Option("--pass-at", metavar="K", min=1, help="Give pass@K too; repeatable.")] = None,
    unsafe_execution: UnsafeExecution = False,
) -> "Outcome":
    """Judge completions that exist already, without a model."""
    from soka_cli.stages.score import score as stage

    return stage(file, task=task, protocol=protocol, out=out, reporter=reporter, pass_at=pass_at or (), unsafe=unsafe_execution)


@verb(
    app,
    "generate",
    examples=(
        "soka generate -d runs/demo --prompt 'Question: ...'",
        "echo 'Question: ...' | soka generate",
        "soka generate -d runs/demo --backend vllm --url http://localhost:8000/v1 --prompt 'Question: ...'",
    ),
    without=("force",),
)
def generate(
    request: Request,
    reporter: "Reporter",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text to answer; repeatable (default: stdin).")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 256,
    backend: Backend = "hf",
    url: ServerUrl = None,
    served_model: ServedName = None,
) -> "Outcome":
    """Answer a prompt with the base and the adapter side by side, or with a server's model."""
    from soka_cli.stages.server_choice import ServerChoice

    server = ServerChoice.of(backend, url, served_model)
    context = request.context(reporter, last_run=True)
    from soka_cli.stages.generate import generate as stage

    prompts = prompt or [typer.get_text_stream("stdin").read().rstrip("\n")]
    return stage(context, prompts=prompts, max_new_tokens=max_new_tokens, server=server)


@verb(app, "merge", examples=("soka merge", "soka merge -d runs/gsm8k --check weights --dtype float16"))
def merge(
    request: Request,
    reporter: "Reporter",
    check: Annotated[
        Literal["logits", "weights"], typer.Option("--check", help="Compare stored weights only, or both models' logits too.")
    ] = "logits",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option("--dtype", help="Type of the merged weights (default: the base's).")
    ] = None,
) -> "Outcome":
    """Write base plus adapter as an ordinary model folder, read back and compared."""
    context = request.context(reporter, last_run=True)
    from soka_cli.stages.merge import merge as stage

    return stage(context, check=check, dtype=dtype)


@verb(
    app,
    "export",
    examples=(
        "soka export --as lokr --out adapters/gsm8k-lokr",
        "soka export -d runs/gsm8k --as lora --rank 16 --out adapters/gsm8k-lora",
        "soka export --as peft --out adapters/gsm8k --push OWNER/NAME",
    ),
    without=("device",),
)
def export(
    request: Request,
    reporter: "Reporter",
    form: Annotated[
        Literal["lokr", "lora", "peft"], typer.Option("--as", help="Exact LoKr terms, a LoRA by SVD, or the PEFT folder itself.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; nothing but an earlier export is ever replaced.")],
    rank: Annotated[int | None, typer.Option("--rank", metavar="R", min=1, help="With --as lora: rank of every module.")] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", metavar="E", help="With --as lora: share of each update that is kept.")
    ] = None,
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder to the Hub, after asking.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: a new repository is public (default: private).")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --push: do not ask.")] = False,
) -> "Outcome":
    """Write the adapter for stock PEFT, with a model card; upload it on request."""
    context = request.context(reporter, last_run=True)
    from soka_cli.cli.pushing import push_exported, refuse_early

    refuse_early(push, public=public, yes=yes, offline=context.offline)
    from soka_cli.stages.export import export as stage

    outcome = stage(context, form, out, rank=rank, energy=energy)
    return outcome if push is None else push_exported(outcome, out, push, public=public, yes=yes)


@verb(app, "report", examples=("soka report", "soka report -d runs/gsm8k"), without=("device",))
def report(request: Request, reporter: "Reporter") -> "Outcome":
    """Draw the run as one HTML page, with Markdown and JSON twins."""
    context = request.context(reporter, last_run=True)
    from soka_cli.stages.report import report as stage

    return stage(context)


@verb(
    app,
    "compare",
    examples=("soka compare runs/demo runs/demo-lora", "soka compare runs/sweep --out comparison --json"),
    without=("overrides", "recipe", "run", "device", "force", "offline"),
)
def compare(
    request: Request,
    reporter: "Reporter",
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run directories that were trained; a sweep's stands for its best runs.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the page, replaced as a whole (default: runs/comparison).")
    ] = None,
    unfair: Annotated[bool, typer.Option("--unfair", help="Show runs of other data or another base all the same, with warnings.")] = False,
) -> "Outcome":
    """Put runs side by side: losses, scores with paired tests, time, memory, and what makes the comparison unfair."""
    from soka_cli.stages.compare import compare as stage

    return stage(runs, out=out, unfair=unfair, reporter=reporter, command=request.command)


@verb(
    app,
    "sweep",
    examples=(
        "soka sweep -r ablations/demo-methods.yaml --dry-run",
        "soka sweep -r ablations/demo-methods.yaml --jobs 2",
        "soka sweep -r ablations/tau.yaml --print-commands > commands.txt",
    ),
)
def sweep(
    request: Request,
    reporter: "Reporter",
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at a time; several GPUs are taken in turn.")] = 1,
    num_processes: Annotated[int, typer.Option("--num-processes", metavar="N", min=1, help="Processes that share the work of a run.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run and what it costs.")] = False,
    print_commands: Annotated[bool, typer.Option("--print-commands", help="Only print one line of shell a run, for a scheduler.")] = False,
) -> "Outcome":
    """Run a recipe's sweep section: methods, grids and seeds, each run a directory of its own; goes on where it stopped."""
    context = request.context(reporter)
    from soka_cli.stages.sweep import sweep as stage

    return stage(
        context,
        overrides=request.overrides,
        jobs=jobs,
        num_processes=num_processes,
        dry_run=dry_run,
        print_commands=print_commands,
    )


@verb(
    app,
    "run",
    examples=(
        "soka run --recipe demo.yaml",
        "soka run -r gsm8k.yaml -d runs/gsm8k-seed1 seed=1",
        "soka run -r gsm8k.yaml --num-processes 8",
    ),
)
def run(
    request: Request, reporter: "Reporter", unsafe_execution: UnsafeExecution = False, num_processes: Processes = 1
) -> "Outcome | None":
    """Do it all: decompose, train, eval, merge, eval of the merged model, report."""
    context = replace(request.context(reporter, last_run=True), unsafe_execution=unsafe_execution)
    from soka_cli.stages.launch import in_processes

    if in_processes(request.command, num_processes):
        return None
    from soka_cli.stages.run import run as stage

    return stage(context)


@verb(app, "demo", examples=("soka demo", "soka demo train.steps=50"))
def demo(request: Request, reporter: "Reporter") -> "Outcome":
    """The whole pipeline on the packaged small model, offline, in minutes."""
    context = request.context(reporter, default_recipe="demo.yaml")
    from soka_cli.stages.demo import demo as stage

    return stage(context)


@verb(
    app,
    "doctor",
    examples=("soka doctor", "soka doctor -r gsm8k.yaml --json", "soka doctor --num-processes 2"),
    without=("force",),
)
def doctor(
    request: Request,
    reporter: "Reporter",
    num_processes: Annotated[
        int, typer.Option("--num-processes", metavar="N", min=1, help="Start so many processes and let them talk, as train would.")
    ] = 1,
) -> "Outcome":
    """Say what this machine has and whether a recipe can run here."""
    asked = request.recipe is not None or request.run is not None
    context = request.context(reporter) if asked else None
    from soka_cli.stages.doctor import doctor as stage

    return stage(context, device=request.device, offline=request.offline, processes=num_processes)


@verb(
    app,
    "recipes",
    examples=(
        "soka recipes",
        "soka recipes show gsm8k adapter.rank.parameters=2M",
        "soka recipes copy gsm8k",
        "soka recipes validate my-recipe.yaml",
        "soka recipes schema > recipe.schema.json",
        "soka recipes reference",
    ),
    without=("overrides", "recipe", "run", "device", "force", "offline"),
)
def recipes(
    request: Request,
    reporter: "Reporter",
    action: Annotated[Literal["list", "show", "copy", "validate", "schema", "reference"], typer.Argument(help="What to do.")] = "list",
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="A recipe; after it, for show, overrides; for validate, more recipes.")
    ] = None,
) -> "Outcome":
    """List the packaged recipes, show one resolved with the origin of each value, copy one here, check some, or print all options."""
    from soka_cli.errors import ExitCode, SokaError
    from soka_cli.stages import recipes as stage

    names = names or []
    takes = {"list": 0, "schema": 0, "reference": 0, "copy": 1}.get(action)
    if action in ("show", "copy") and not names:
        raise SokaError(f"soka recipes {action} needs a name", hint=f"soka recipes {action} gsm8k", exit_code=ExitCode.USAGE)
    if takes is not None and len(names) > takes:
        raise SokaError(
            f"soka recipes {action} takes {'one name' if takes else 'no name'}", hint="soka recipes --help", exit_code=ExitCode.USAGE
        )
    if action == "list":
        return stage.list_recipes()
    if action == "schema":
        return stage.show_schema()
    if action == "reference":
        return stage.show_reference()
    if action == "validate":
        return stage.validate_recipes(names)
    return stage.show_recipe(names[0], names[1:]) if action == "show" else stage.copy_recipe(names[0])


@verb(app, "clean", examples=("soka clean -d runs/gsm8k", "soka clean --yes"), without=("overrides", "device", "force", "offline"))
def clean(
    request: Request,
    reporter: "Reporter",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> "Outcome":
    """Remove stages that --force set aside, after asking."""
    context = request.context(reporter, last_run=True)
    from soka_cli.stages.clean import clean as stage

    found = stage(context, confirmed=False)
    if not found.figures["set_aside"] or not (
        yes or typer.confirm(f"remove {len(found.figures['set_aside'])} set-aside stages?", err=True)
    ):
        return found
    return stage(context, confirmed=True)
