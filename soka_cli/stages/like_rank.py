"""What the baselines would train at the same rank, to be set beside the chosen method."""

from collections.abc import Sequence

from soka_cli.kron.shape import divisors
from soka_cli.stages.dimensions import LinearModule
from soka_cli.stages.sizes import PlannedModule


def lokr_parameters(module: LinearModule, rank: int) -> int:
    """PEFT's LoKr by its defaults: w1 m x n whole, and w2 p x q as p x r and r x q, or whole from half its larger side on."""
    m, p = near_root(module.out_features)
    n, q = near_root(module.in_features)
    return m * n + (rank * (p + q) if rank < max(p, q) / 2 else p * q)


def near_root(size: int) -> tuple[int, int]:
    """The two factors of a size that lie nearest to its square root, the smaller first."""
    small = max(one for one in divisors(size) if one * one <= size)
    return small, size // small


def lokr_span(modules: Sequence[PlannedModule], *, shared_out: bool = False) -> dict[str, int]:
    """Over these modules, at their smallest and at their largest ranks; with `shared_out` at those of a budget spread evenly. A module
    without terms gets none."""
    ends = {"from": False, "to": True}
    ranks = {end: [one.rank(most=most) if shared_out else one.most if most else one.least for one in modules] for end, most in ends.items()}
    return {
        end: sum(lokr_parameters(one.module, rank) for one, rank in zip(modules, held, strict=True) if rank) for end, held in ranks.items()
    }
