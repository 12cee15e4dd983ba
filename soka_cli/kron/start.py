"""Other terms of a decomposition's sizes: random ones, and those of another norm."""

import torch
from torch import Tensor

from soka_cli.kron.factors import KronFactors


def random_factors(like: KronFactors, *, seed: int) -> KronFactors:
    """Random terms with the sizes and sigmas of others: the U_k are orthonormal as vectors, and so are the V_k.

    So R(K) has these very sigmas as its singular values, as it has for terms that a decomposition found.

    Args:
        like: terms of any device and type, which the result shares.
        seed: of the draw, made on the CPU so that devices agree.
    """
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(factors: Tensor) -> Tensor:
        drawn = torch.randn(factors[0].numel(), len(factors), generator=generator, dtype=torch.float64)
        columns, _ = torch.linalg.qr(drawn)
        return columns.T.reshape(factors.shape).to(factors)

    return KronFactors(orthonormal(like.left), orthonormal(like.right), like.sigma.clone())


def scaled_to(factors: KronFactors, norm: float) -> KronFactors:
    """The same U and V with sigmas in the same proportions and ||sigma|| = norm; sigmas that are all zero stay so."""
    held = float(factors.sigma.double().norm())
    return KronFactors(factors.left, factors.right, factors.sigma * (norm / held if held else 0.0))
