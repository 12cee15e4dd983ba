"""Rule budget in a model that is at hand: decompose every target, share the total out, cut each module's terms."""

from collections.abc import Mapping

from soka_cli.adapter.config import SokaConfig
from soka_cli.adapter.layer import SokaLayer
from soka_cli.adapter.start import Start
from soka_cli.kron import Bid, KronFactors, allocate, balanced, refuse_too_little


def budgeted_terms(layers: Mapping[str, SokaLayer], config: SokaConfig) -> dict[str, KronFactors]:
    """The terms of each module that gets any, by the module's name.

    Modules whose number of terms `rank_pattern` gives keep it, and it counts. Ranks and shapes are written into the config, which
    leaves out the modules without terms. Where all numbers are given, or a weight has no values to decompose (meta device),
    nothing is done and nothing returned.

    Args:
        layers: every target of the base model.

    Raises:
        ValueError: the total is too small, naming the least that works, or as `SokaLayer.update_layer`.
    """
    rule, given = config.rank_rule, {name: config.rank_of(name) for name in layers}
    if rule.parameters is None or all(rank is not None for rank in given.values()):
        return {}
    sizes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    shapes = {name: config.shape_of(name, *size) or balanced(*size) for name, size in sizes.items()}  # no term is cheaper than balanced's
    floors = {name: rule.floor if rank is None else rank for name, rank in given.items()}
    refuse_too_little([(shape, min(floors[name], shape.max_rank)) for name, shape in shapes.items()], rule.parameters)
    starts: dict[str, Start] = {}
    for name, layer in layers.items():
        start = layer.start_at_hand(config, name)
        if start is None:
            return {}
        starts[name] = start
    bids = {name: Bid.of(one.factors, one.found.spectrum, one.found.error_bound, floors[name]) for name, one in starts.items()}
    allotted = allocate(bids, rule.parameters)
    config.leave_out([name for name, allotment in allotted.items() if allotment.rank == 0])
    kept = {name: starts[name].factors.leading(allotment.rank) for name, allotment in allotted.items() if allotment.rank}
    for name, factors in kept.items():
        config.record(name, factors.shape, factors.rank)
    return kept
