"""pass@k without bias: the chance that of k samples drawn from n at least one is right (Chen et al., arXiv 2107.03374)."""

import math

from soka_cli.errors import ExitCode, SokaError


def pass_at_k(samples: int, right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for n samples of which c are right; as a product, so that nothing overflows.

    Raises:
        SokaError: exit 2 for k beyond the number of samples, of which nothing is known.
    """
    if not 1 <= k <= samples:
        raise SokaError(
            f"pass@{k} cannot be told from {samples} samples of an item.",
            where=f"pass@{k}",
            why="k samples have to be drawn from those that there are",
            hint=f"give k from 1 to {samples}, or more samples of every item",
            exit_code=ExitCode.USAGE,
        )
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - right + 1, samples + 1))
