"""What the baselines would train at the same rank, to be set beside the chosen method."""

from collections.abc import Sequence

from soka_cli.stages.baselines import lokr_parameters
from soka_cli.stages.sizes import PlannedModule


def lokr_span(modules: Sequence[PlannedModule], *, shared_out: bool = False) -> dict[str, int]:
    """Over these modules, at their smallest and at their largest ranks; with `shared_out` at those of a budget spread evenly. A module
    without terms gets none."""
    ends = {"from": False, "to": True}
    sized = [one for one in modules if one.module.out_features]  # what modules of a PEFT method share has no sizes
    ranks = {end: [one.rank(most=most) if shared_out else one.most if most else one.least for one in sized] for end, most in ends.items()}
    return {
        end: sum(lokr_parameters(one.module, rank) for one, rank in zip(sized, held, strict=True) if rank) for end, held in ranks.items()
    }
