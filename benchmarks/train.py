"""A training step of a small Llama under soka, LoRA, LoKr, PiSSA and full training: time, what autograd keeps, peak; one CPU thread.

python -m benchmarks.train [--width 1024] [--tokens 1024] [--ranks 1 2 8] [--repeats 7]

Two blocks, q, v, up and down adapted, fp32. All methods take turns; a figure is the median of CPU seconds of the one thread, a ratio the
median (and the middle half) of the repetitions' ratios. LoKr has two full factors: one term of soka's shape where PEFT factorises alike.
Kept: bytes of distinct storages that autograd saves in one forward pass, without parameters and buffers. Peak: of all that is alive at
once in a whole step, by torch's own accounting: weights, kept matrices, gradients, AdamW's moments, activations, workspace.
"""

import argparse
import os
import platform

from soka_cli.cli.app import LIBRARY_SETTINGS

os.environ.update(LIBRARY_SETTINGS)  # as `soka` starts

import torch
from peft import LoraConfig
from torch import Tensor, nn

from benchmarks.adapted import config, llama, trained
from benchmarks.stopwatch import interleaved
from benchmarks.storages import PeakStorages
from soka_cli.adapter.products import keep_matrices
from soka_cli.kron import PLANS

TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")


class Trained:
    """A model with its optimizer, and one step."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(trained(model), lr=1e-5)
        self.ids = torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(0))

    def loss(self) -> Tensor:
        loss: Tensor = self.model(input_ids=self.ids, labels=self.ids).loss
        return loss

    def step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def peak(self) -> int:
        """Bytes of all storages alive at once in a step that has its moments already."""
        with PeakStorages() as counted:
            self.step()
        return counted.peak

    def kept(self) -> int:
        """Bytes that autograd saves, each storage once, without what the model holds anyway."""
        own = {one.untyped_storage().data_ptr() for one in (*self.model.parameters(), *self.model.buffers())}
        saved: dict[int, int] = {}

        def seen(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            loss = self.loss()
        total = sum(saved.values())
        del loss
        return total


def methods(width: int, rank: int, tokens: int) -> dict[str, Trained]:
    def adapted(method: str, product: str = "auto") -> nn.Module:
        return llama(width, 2, config(method, TARGETS, rank, product))

    models = {"LoRA": adapted("lora"), "soka": adapted("soka")}
    keep_matrices(models["soka"], 1 << 34)
    models |= {f"soka, {plan}": adapted("soka", plan) for plan in PLANS}
    models["soka, nothing kept"] = adapted("soka")
    models["LoKr"] = adapted("lokr")
    start = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="pissa_niter_2")
    models["PiSSA"] = llama(width, 2, start)
    models["full"] = llama(width, 2, None)
    return {name: Trained(model, tokens) for name, model in models.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, fp32, n = {options.repeats}, CPU seconds of the thread")
    print(f"d = {options.width}, {options.tokens} tokens")
    print("\n| method | r | trained | step ms | / LoRA | / LoKr | kept MB | / LoRA | peak MB | / LoRA |\n" + "| --- " * 10 + "|")
    for rank in options.ranks:
        ways = methods(options.width, rank, options.tokens)
        times = interleaved({name: way.step for name, way in ways.items()}, options.repeats)
        kept, peak = ({name: measure(way) for name, way in ways.items()} for measure in (Trained.kept, Trained.peak))
        for name, spent in times.items():
            count = sum(parameter.numel() for parameter in trained(ways[name].model))
            ratios = f"{spent.spread(times['LoRA'])} | {spent.spread(times['LoKr'])}"
            bytes_ = " | ".join(f"{held[name] / 1e6:.1f} | {held[name] / held['LoRA']:.2f}" for held in (kept, peak))
            print(f"| {name} | {rank} | {count:,} | {1e3 * spent.median:.0f} | {ratios} | {bytes_} |")


if __name__ == "__main__":
    main()
