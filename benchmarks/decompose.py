"""Leading singular triplets with a bound, against the ways that a well-kept library offers, in one run.

python -m benchmarks.decompose [--side 4096] [--repeats 5] [--threads 2] [--full-svd]

Every way runs once a repetition, interleaved; ratios are of the same repetition. `torch.svd_lowrank` is given, for each
spectrum, the cheapest oversampling and niter whose measured error is at most that of soka's (measured against the eigenvalues
of the Gram matrix in fp64); where none gets there, the cheapest within twice the least error that it reached. Spectra: flat
(Gaussian entries), decaying (Gaussian with rows scaled by k^-1).
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from soka_cli.cli.app import LIBRARY_SETTINGS

os.environ.update(LIBRARY_SETTINGS)  # as `soka` starts

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from soka_cli.adapter import SokaConfig, SokaLayer
from soka_cli.kron import KronShape, balanced, kron_dense, leading_triplets, rearrange

BOUND = 1e-3  # of sigma_1, what soka is asked for
OVERSAMPLING = (8, 16, 32, 48, 64, 96)
POWERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass
class Times:
    """Seconds of one way, one entry a repetition."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.seconds):.3f}-{max(self.seconds):.3f})"

    def over(self, other: "Times") -> float:
        """The median of the ratios, repetition by repetition."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))


def gaussian(rows: int, columns: int, spectrum: str, seed: int) -> Tensor:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return matrix if spectrum == "flat" else matrix / torch.arange(1, rows + 1)[:, None]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def gram_values(matrix: Tensor) -> Tensor:
    """All singular values from the fp64 Gram matrix of the smaller side, descending."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    gram = torch.zeros(matrix.shape[0], matrix.shape[0], dtype=torch.float64)
    for columns in matrix.split(1024, 1):
        part = columns.double()
        gram.addmm_(part, part.T)
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def error(sigma: Tensor, true: Tensor) -> float:
    """The largest error of the leading values as a share of the first."""
    return float((sigma.double() - true[: len(sigma)]).abs().max() / true[0])


@dataclass(frozen=True)
class Lowrank:
    """A setting of `torch.svd_lowrank` and the error that it reached, as a share of sigma_1."""

    columns: int
    powers: int
    seconds: float
    error: float

    def __str__(self) -> str:
        return f"q={self.columns}, niter={self.powers}"


def tuned_lowrank(matrix: Tensor, count: int, true: Tensor, wanted: float) -> Lowrank:
    """The fastest `torch.svd_lowrank` whose error is at most `wanted`; where none is, the fastest within twice the least error."""
    tried: list[Lowrank] = []
    for extra in OVERSAMPLING:
        for powers in POWERS:
            torch.manual_seed(0)
            started = time.perf_counter()
            _, sigma, _ = torch.svd_lowrank(matrix, q=count + extra, niter=powers)
            tried.append(Lowrank(count + extra, powers, time.perf_counter() - started, error(sigma[:count], true)))
            if tried[-1].error <= wanted:
                break
    least = min(one.error for one in tried)
    enough = wanted if least <= wanted else 2 * least
    return min((one for one in tried if one.error <= enough), key=lambda one: one.seconds)


def solver(side: int, count: int, spectrum: str, repeats: int, full_svd: bool) -> None:
    """One row of the table of ways."""
    matrix = gaussian(side, side, spectrum, seed=0)
    true = gram_values(matrix)
    found = leading_triplets(matrix, count, seed=0, method="randomised", tolerance=BOUND)
    reached, stated = error(found.sigma, true), float(found.error_bound.max() / found.sigma[0])
    assert bool(((found.sigma - true[:count]).abs() <= found.error_bound + 1e-12 * true[0]).all()), "a bound does not hold"
    lowrank = tuned_lowrank(matrix, count, true, max(reached, 1e-7))
    ours, peer, gram = Times([]), Times([]), Times([])
    for number in range(repeats):
        ours.seconds.append(seconds(lambda seed=number: leading_triplets(matrix, count, seed=seed, method="randomised", tolerance=BOUND)))
        peer.seconds.append(seconds(lambda: torch.svd_lowrank(matrix, q=lowrank.columns, niter=lowrank.powers)))
        gram.seconds.append(seconds(lambda: torch.linalg.eigh(matrix.double() @ matrix.double().T)))
    svd = seconds(lambda: torch.linalg.svd(matrix, full_matrices=False)) if full_svd else None
    print(
        f"| {spectrum} | {count} | {ours} | {stated:.1e} | {reached:.1e} | "
        + f"{lowrank}: {peer} | {lowrank.error:.1e} | {ours.over(peer):.2f} | "
        + f"{gram} | {1 / ours.over(gram):.1f} | "
        + (f"{svd:.1f} | {svd / ours.median:.0f} |" if svd else "- | - |"),
        flush=True,
    )


def wide(side: int, repeats: int) -> None:
    """A feed-forward weight of LLaMA-2-7B against a square one, 16 terms."""
    shapes: list[tuple[str, KronShape]] = [("4096 x 4096", balanced(side, side)), ("11008 x 4096", balanced(side * 43 // 16, side))]
    for spectrum in ("flat", "decaying"):
        matrices = [rearrange(gaussian(one.out_features, one.in_features, spectrum, seed=1), one) for _, one in shapes]
        times = [Times([]), Times([])]
        for number in range(repeats):
            for matrix, taken in zip(matrices, times, strict=True):
                taken.seconds.append(seconds(lambda m=matrix, s=number: leading_triplets(m, 16, seed=s, tolerance=BOUND)))
        sizes = ", ".join(f"{name} as {tuple(matrix.shape)}" for (name, _), matrix in zip(shapes, matrices, strict=True))
        print(f"| {spectrum} | {sizes} | {times[0]} | {times[1]} | {times[1].over(times[0]):.2f} |", flush=True)


def started(config: PeftConfig, matrix: Tensor) -> tuple[float, nn.Module]:
    """Seconds that PEFT takes to put an adapter on one linear layer with this weight, and the model."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data.copy_(matrix)
    begun = time.perf_counter()
    model = get_peft_model(nn.Sequential(layer), config)
    return time.perf_counter() - begun, model


def pissa(side: int) -> None:
    """PiSSA's start beside SoKA's, 16 ranks or terms of one square weight; each error beside the least that there is."""
    for spectrum in ("flat", "decaying"):
        matrix = gaussian(side, side, spectrum, seed=0)
        for way in ("pissa", "pissa_niter_16"):
            spent, model = started(LoraConfig(target_modules=["0"], r=16, lora_alpha=16, init_lora_weights=way), matrix)
            residual = next(parameter for name, parameter in model.named_parameters() if "base_layer" in name)
            least = 1 - float(gram_values(matrix)[:16].square().sum() / matrix.double().square().sum())
            report(spectrum, way, spent, float((residual.detach().double().norm() / matrix.double().norm()).square()), least)
        spent, model = started(SokaConfig(target_modules=["0"], rank={"rule": "fixed", "value": 16}), matrix)
        rearranged = rearrange(matrix, balanced(side, side))
        least = 1 - float(gram_values(rearranged)[:16].square().sum() / matrix.double().square().sum())
        terms = next(layer for layer in model.modules() if isinstance(layer, SokaLayer)).factors("default")
        lost = matrix - kron_dense(terms.left, terms.right, terms.sigma).detach()
        report(spectrum, "soka", spent, float((lost.double().norm() / matrix.double().norm()).square()), least)


def report(spectrum: str, way: str, spent: float, lost: float, least: float) -> None:
    print(f"| {spectrum} | {way} | {spent:.2f} | {lost:.6f} | {least:.6f} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spectra", nargs="+", default=["flat", "decaying"], help="of the table of ways")
    parser.add_argument("--full-svd", action="store_true", help="time one full SVD a spectrum too (about 11 s at 4096), and PiSSA's starts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, n = {options.repeats}, seeds from 0\n")
    columns = ("spectrum", "terms", "soka s", "bound stated", "error", "svd_lowrank s", "its error", "soka / it")
    print("".join(f"| {name} " for name in (*columns, "Gram + eigh s", "it / soka", "SVD s", "it / soka")) + "|\n" + "| --- " * 12 + "|")
    for spectrum in options.spectra:
        for count in (16, 32):
            solver(options.side, count, spectrum, options.repeats, options.full_svd and count == 16)
    print("\n| spectrum | sizes | square s | wide s | wide / square |\n| --- | --- | --- | --- | --- |")
    wide(options.side, options.repeats)
    if options.full_svd:
        print("\n| spectrum | start | s | energy left out | least possible |\n| --- | --- | --- | --- | --- |")
        pissa(options.side)


if __name__ == "__main__":
    main()
