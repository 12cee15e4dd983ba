"""Sizes of the two Kronecker factors of a weight, and what a term of that size costs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any


@dataclass(frozen=True)
class KronShape:
    """A weight of m*p rows and n*q columns as a sum of terms U (x) V, with U of m x n and V of p x q."""

    m: int
    n: int
    p: int
    q: int

    def __post_init__(self) -> None:
        if min(self.m, self.n, self.p, self.q) < 1:
            raise ValueError(f"every size of {self} must be at least 1")

    def __str__(self) -> str:
        return f"{self.m}x{self.n} (x) {self.p}x{self.q}"

    @property
    def out_features(self) -> int:
        return self.m * self.p

    @property
    def in_features(self) -> int:
        return self.n * self.q

    @property
    def term_parameters(self) -> int:
        """Entries of U, of V, and one sigma."""
        return self.m * self.n + self.p * self.q + 1

    @property
    def max_rank(self) -> int:
        """Terms after which every weight of this size is exact: the smaller side of R(W)."""
        return min(self.m * self.n, self.p * self.q)

    def parameters(self, rank: int) -> int:
        """Parameters of `rank` terms: r (mn + pq + 1)."""
        return rank * self.term_parameters


def divisors(number: int) -> list[int]:
    """Divisors of `number`, ascending."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def balanced(out_features: int, in_features: int) -> KronShape:
    """The shape that minimises mn + pq, then |log(m/n)| + |log(p/q)|, then takes m <= p."""
    return min(_every_shape(out_features, in_features), key=_balance)


def affordable(out_features: int, in_features: int, parameters: int) -> list[tuple[KronShape, int]]:
    """Every shape of which `parameters` pay at least one term, with the number of terms that they pay for, in balanced's order.

    Where each index of the weight lies in one factor whole, as in out x 1 (x) 1 x in, swapping the factors gives the same
    terms; of such twins the first in the order stands for both.
    """
    distinct: dict[object, KronShape] = {}
    for shape in sorted(_every_shape(out_features, in_features), key=_balance):
        has_twin = 1 in (shape.m, shape.p) and 1 in (shape.n, shape.q)
        distinct.setdefault(shape.max_rank if has_twin else shape, shape)
    paid = ((shape, min(parameters // shape.term_parameters, shape.max_rank)) for shape in distinct.values())
    return [(shape, terms) for shape, terms in paid if terms >= 1]


def _every_shape(out_features: int, in_features: int) -> Iterator[KronShape]:
    """One for each pair of divisors."""
    return (KronShape(m, n, out_features // m, in_features // n) for m in divisors(out_features) for n in divisors(in_features))


def _balance(shape: KronShape) -> tuple[int, Fraction, bool, int, int]:
    """Sort key of `balanced`. exp of the sum of logs is rational, so ties are exact; m and n settle what is left."""
    skew = Fraction(max(shape.m, shape.n), min(shape.m, shape.n)) * Fraction(max(shape.p, shape.q), min(shape.p, shape.q))
    return shape.term_parameters, skew, shape.m > shape.p, shape.m, shape.n


def blocked(out_features: int, in_features: int, block: int) -> KronShape:
    """Square right factors: p = q = block.

    Raises:
        ValueError: block does not divide both sizes; names the nearest that do.
    """
    common = divisors(gcd(out_features, in_features))
    if block not in common:
        raise ValueError(f"block {block} does not divide {out_features} and {in_features}; the nearest that do: {_nearest(common, block)}")
    return KronShape(out_features // block, in_features // block, block, block)


def explicit(out_features: int, in_features: int, m: int, n: int) -> KronShape:
    """The shape whose left factor is m x n.

    Raises:
        ValueError: m does not divide out_features or n in_features; names the nearest that do.
    """
    for name, size, whole in (("m", m, out_features), ("n", n, in_features)):
        if size < 1 or whole % size:
            raise ValueError(f"{name} = {size} does not divide {whole}; the nearest that do: {_nearest(divisors(whole), size)}")
    return KronShape(m, n, out_features // m, in_features // n)


def _nearest(sizes: Iterable[int], wanted: int) -> str:
    """The next size below and the next above, those that there are."""
    ordered = sorted(sizes)
    below = [size for size in ordered if size < wanted][-1:]
    above = [size for size in ordered if size > wanted][:1]
    return " and ".join(str(size) for size in below + above)


def choose_shape(choice: str | Mapping[str, Any], out_features: int, in_features: int) -> KronShape | None:
    """The shape that a recipe's value asks for: "balanced", {"block": 64} or {"m": 64, "n": 64}.

    None for "search", which has to see the matrix (`search_shape`).

    Raises:
        ValueError: another value, or sizes that do not divide.
    """
    if choice == "balanced":
        return balanced(out_features, in_features)
    if choice == "search":
        return None
    if isinstance(choice, Mapping):
        sizes = dict(choice)
        if all(isinstance(size, int) and not isinstance(size, bool) for size in sizes.values()):
            if sizes.keys() == {"block"}:
                return blocked(out_features, in_features, sizes["block"])
            if sizes.keys() == {"m", "n"}:
                return explicit(out_features, in_features, sizes["m"], sizes["n"])
    raise ValueError(f"shape {choice!r} is none of: balanced, search, {{block: 64}}, {{m: 64, n: 64}}")
