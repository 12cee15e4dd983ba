"""Random sizes of weights and their factors, the same in every run."""

import random

from soka_cli.kron import KronShape, divisors


def random_shapes(count: int, largest: int = 60, seed: int = 0) -> list[KronShape]:
    """Shapes of weights with up to `largest` rows and columns, each split at random divisors."""
    draw = random.Random(seed)
    sizes = [(draw.randint(1, largest), draw.randint(1, largest)) for _ in range(count)]
    return [
        KronShape(m, n, out // m, inn // n) for out, inn in sizes for m, n in [(draw.choice(divisors(out)), draw.choice(divisors(inn)))]
    ]


def random_sizes(count: int, largest: int = 60, seed: int = 0) -> list[tuple[int, int, int, int, int]]:
    """(r, m, n, p, q) of as many, with up to six terms."""
    draw = random.Random(seed)
    return [(draw.randint(1, 6), shape.m, shape.n, shape.p, shape.q) for shape in random_shapes(count, largest, seed)]
