"""What `soka decompose` holds in memory and how long it takes as a checkpoint grows, and what reading ahead gains.

python -m benchmarks.streaming [--width 1024] [--inner 2816] [--layers 1 2 4 8] [--repeats 5] [--power-law]
python -m benchmarks.streaming --width 4096 --inner 11008 --layers 1 2 --parts growth     (layers of LLaMA-2-7B's sizes; it has 32)

Whole processes on synthetic Llama checkpoints (Gaussian bf16 weights, or with rows scaled by k^-0.5; one shard a layer, all
seven projections, rule min with max 16). Peak RSS is the kernel's count for the process; seconds of work are those between the
first tensor and the last part.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

VOCABULARY = 64
PROGRAM = """
import sys, time
from soka_cli.stages import decomposition
from soka_cli.cli.app import main
if sys.argv[1] == "one by one":
    decomposition.read_ahead = lambda items: items
work, spent = decomposition.decompose_modules, []
def timed(*arguments):
    started = time.perf_counter()
    work(*arguments)
    spent.append(time.perf_counter() - started)
decomposition.decompose_modules = timed
code = main(sys.argv[2:])
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would count the parent's as well
print(spent[0], int(peak.split()[1]) * 1024, file=sys.stderr)
sys.exit(code)
"""


def weight(size: tuple[int, int], generator: torch.Generator, power_law: bool) -> torch.Tensor:
    values = torch.randn(*size, generator=generator).mul_(0.02)
    return (values / torch.arange(1, size[0] + 1)[:, None].sqrt() if power_law else values).bfloat16()


def synthetic_llama(folder: Path, *, width: int, inner: int, layers: int, power_law: bool, seed: int = 0) -> None:
    """A Llama checkpoint of random bf16 weights."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"self_attn.{kind}_proj": (width, width) for kind in "qkvo"}
    sizes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for layer in range(layers):
        tensors = {name: weight(size, generator, power_law) for name, size in sizes.items()}
        norms = {"input_layernorm": torch.ones(width), "post_attention_layernorm": torch.ones(width)}
        shards[f"model-{layer}.safetensors"] = {f"model.layers.{layer}.{name}.weight": one for name, one in (tensors | norms).items()}
    table = torch.zeros(VOCABULARY, width).bfloat16()
    shards["model-tables.safetensors"] = {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table.clone(),
        "model.norm.weight": torch.ones(width),
    }
    for file, held in shards.items():
        save_file(held, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def recipe(folder: Path, model: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {"name": str(model), "dtype": "bfloat16"},
                "adapter": {"method": "soka", "target_modules": "all-linear", "rank": {"rule": "min", "max": 16}},
                "data": {"train": {"path": "none.jsonl", "prompt": "a", "target": "b"}},
            }
        )
    )
    return path


def forget(folder: Path) -> None:
    """Drop a folder's files from the kernel's page cache, so that they are read from the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(folder: Path, model: Path, how: str) -> tuple[float, float]:
    """Seconds of work and peak resident bytes of one `soka decompose`."""
    run = tempfile.mkdtemp(dir=folder)
    words = ["decompose", "--recipe", str(recipe(folder, model)), "--run", f"{run}/run", "--device", "cpu", "--quiet"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, how, *words], check=True, capture_output=True, text=True)
    seconds, resident = done.stderr.split()[-2:]
    return float(seconds), float(resident)


def made(folder: Path, options: argparse.Namespace, count: int) -> Path:
    """A model of so many layers."""
    model = folder / f"llama-{count}"
    inner = options.inner or options.width * 11 // 4
    synthetic_llama(model, width=options.width, inner=inner, layers=count, power_law=options.power_law)
    return model


def growth(folder: Path, options: argparse.Namespace) -> list[Path]:
    """The table, and the models it is of, the largest last."""
    print("| layers | weights MB | peak RSS MB | seconds (least-most) | seconds a layer |\n| --- | --- | --- | --- | --- |")
    models = [made(folder, options, count) for count in sorted(options.layers)]
    for count, model in zip(sorted(options.layers), models, strict=True):
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        runs = [measured(folder, model, "ahead") for _ in range(options.repeats)]
        spent, resident = (list(values) for values in zip(*runs, strict=True))
        seconds, between = statistics.median(spent), f"{min(spent):.2f}-{max(spent):.2f}"
        print(f"| {count} | {size / 1e6:.0f} | {max(resident) / 1e6:.0f} | {seconds:.2f} ({between}) | {seconds / count:.2f} |", flush=True)
    return models


def launched(folder: Path, model: Path, processes: int) -> tuple[float, list[int]]:
    """Seconds of a whole `soka decompose --num-processes`, start-up included, and peak resident bytes of each process."""
    run = tempfile.mkdtemp(dir=folder)
    words = ["decompose", "--recipe", str(recipe(folder, model)), "--run", f"{run}/run", "--device", "cpu", "--quiet"]
    started = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "soka_cli", *words, "--num-processes", str(processes)], stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                peaks[one.pid] = max(peaks.get(one.pid, 0), one.memory_info().rss)
        time.sleep(0.1)
    assert process.returncode == 0, f"exit {process.returncode}"
    return time.perf_counter() - started, sorted(peaks.values(), reverse=True)[:processes]


def sharing(folder: Path, models: list[Path], repeats: int) -> None:
    """One process on all cores against two on half of them each; what a further layer costs tells start-up apart."""
    print("\n| model | processes | seconds in all (least-most) | peak RSS MB of each |\n| --- | --- | --- | --- |")
    for model in models:
        runs: dict[int, list[tuple[float, list[int]]]] = {1: [], 2: []}
        for _ in range(repeats):
            for processes, found in runs.items():
                found.append(launched(folder, model, processes))
        for processes, found in runs.items():
            spent = [seconds for seconds, _ in found]
            peaks = ", ".join(f"{peak / 1e6:.0f}" for peak in found[-1][1])
            between = f"{min(spent):.1f}-{max(spent):.1f}"
            print(f"| {model.name} | {processes} | {statistics.median(spent):.1f} ({between}) | {peaks} |", flush=True)


def reading(folder: Path, model: Path) -> float:
    """Seconds to read, check, digest and cast all weights, nothing else: the most that reading ahead can hide."""
    from soka_cli.models.checkpoint import Checkpoint
    from soka_cli.recipe.load import load_recipe
    from soka_cli.run.layout import RunLayout
    from soka_cli.stages.context import StageContext
    from soka_cli.stages.matrices import weight_matrices
    from soka_cli.stages.work import planned

    context = StageContext(load_recipe(recipe(folder, model)), RunLayout(folder / "unused"))
    works = planned(context, Checkpoint(model), {}).works
    started = time.perf_counter()
    for _, matrix in weight_matrices(works, context.recipe.model.dtype):
        matrix.take()
    return time.perf_counter() - started


def reading_ahead(folder: Path, model: Path, repeats: int) -> None:
    """Interleaved, with warm and cold page cache."""
    print("\n| page cache | reading alone s | one by one s | ahead s | gain |\n| --- | --- | --- | --- | --- |")
    for cache in ("warm", "cold"):
        ways: dict[str, Callable[[], float]] = {
            "alone": lambda: reading(folder, model),
            "one by one": lambda: measured(folder, model, "one by one")[0],
            "ahead": lambda: measured(folder, model, "ahead")[0],
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                if cache == "cold":
                    forget(model)
                times[name].append(way())
        alone, before, after = (statistics.median(seconds) for seconds in times.values())
        print(f"| {cache} | {alone:.2f} | {before:.2f} | {after:.2f} | {100 * (1 - after / before):.0f}% |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, help="width of the feed-forward; 2.75 times the width where it is not given")
    parser.add_argument("--power-law", action="store_true")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=["growth", "sharing", "reading"], default=["growth", "reading"])
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soka-streaming-") as name:
        folder = Path(name)
        models = growth(folder, options) if "growth" in options.parts else [made(folder, options, count) for count in options.layers]
        if "sharing" in options.parts:
            sharing(folder, models, options.repeats)
        if "reading" in options.parts:
            reading_ahead(folder, models[-1], options.repeats)
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
