"""What the weight pass of `soka merge` holds in memory and how fast it goes, as the tensors grow.

python -m benchmarks.merge [--width 1024 2048 4096] [--layers 2] [--vocabulary 32000] [--repeats 3] [--dtype float32]

Whole `soka merge --check weights` processes on synthetic bf16 Llama checkpoints (one shard a layer), with a SoKA adapter of 2
terms on all seven projections, or a LoRA of rank 64. Peak RSS is the kernel's count for the process (VmHWM); the bound is that of
a process that only imports torch, plus twice the largest tensor, plus 100 MB. Seconds are of writing and of reading back.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import streaming
from soka_cli.kron import balanced
from soka_cli.models.checkpoint import Checkpoint

MEGABYTE = 1e6
PEAK = """
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would count the parent's as well
    return int(line.split()[1]) * 1024
"""
TORCH = PEAK + "import torch; print(peak())"
PROGRAM = (
    PEAK
    + """
import sys, time
from soka_cli.cli.app import main
from soka_cli.stages import merging
spent = {}
def timed(name):
    work = getattr(merging, name)
    def measured(*arguments):
        started = time.perf_counter()
        result = work(*arguments)
        spent[name] = time.perf_counter() - started
        return result
    setattr(merging, name, measured)
timed("write_model"), timed("read_back")
code = main(sys.argv[1:])
print(spent["write_model"], spent["read_back"], peak(), int("transformers" in sys.modules or "peft" in sys.modules), file=sys.stderr)
sys.exit(code)
"""
)


def adapter(folder: Path, base: Checkpoint, method: str, rank: int) -> None:
    """A random adapter on every projection of a synthetic checkpoint."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name in base.names:
        if not name.endswith("_proj.weight"):
            continue
        out, inner = base.shape(name)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        shape = balanced(out, inner)
        sizes = {"U": (rank, shape.m, shape.n), "V": (rank, shape.p, shape.q), "sigma": (rank,)}
        if method == "soka":
            made = {f"soka_{start}{part}": size for start in ("", "start_") for part, size in sizes.items()}
        else:
            made = {"lora_A.weight": (rank, inner), "lora_B.weight": (out, rank)}
        tensors |= {f"{module}.{part}": torch.randn(*size, generator=generator).mul_(0.01) for part, size in made.items()}
    kinds = [f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")]
    config = {"peft_type": method.upper(), "target_modules": kinds, "r": rank, "lora_alpha": rank, "rank": {"rule": "fixed", "value": rank}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def measured(folder: Path, model: Path, method: str, rank: int, dtype: str | None) -> list[float]:
    """Seconds of writing and reading back, peak bytes, and whether transformers or PEFT came in."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        adapter(Path(run) / "train" / "adapter", Checkpoint(model), method, rank)
        words = ["merge", "--recipe", str(streaming.recipe(folder, model)), "--run", run, "--check", "weights", "--quiet", "--offline"]
        words += ["--dtype", dtype] if dtype else []
        done = subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, capture_output=True, text=True)
    return [float(figure) for figure in done.stderr.split()[-4:]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    streaming.VOCABULARY = options.vocabulary
    own = statistics.median(int(subprocess.run([sys.executable, "-c", TORCH], check=True, capture_output=True).stdout) for _ in range(3))
    print(f"import torch: {own / MEGABYTE:.0f} MB\n")
    print("| adapter | weights MB | largest tensor MB | bound MB | peak RSS MB | write s | read back s | transformers or PEFT |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="soka-merge-") as name:
        for width in options.width:
            model = Path(name) / f"llama-{width}"
            size = streaming.synthetic_llama(model, width=width, inner=width * 43 // 16, layers=options.layers, power_law=False)
            base = Checkpoint(model)
            largest = max(base.nbytes(tensor) for tensor in base.names)
            for method, rank in (("soka", 2), ("lora", 64)):
                runs = [measured(Path(name), model, method, rank, options.dtype) for _ in range(options.repeats)]
                write, read, _, _ = (statistics.median(values) for values in zip(*runs, strict=True))
                peak, others = max(one[2] for one in runs), any(one[3] for one in runs)
                bound = own + 2 * largest + 100 * MEGABYTE
                figures = [f"{one / MEGABYTE:.0f}" for one in (size, largest, bound, peak)]
                print(f"| {method} {rank} | {' | '.join(figures)} | {write:.2f} | {read:.2f} | {'yes' if others else 'no'} |", flush=True)
                if peak > bound:
                    print(f"above the bound by {(peak - bound) / MEGABYTE:.0f} MB")
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
