"""Singular values of a Kronecker sum's rearranged form, from its terms alone."""

import torch
from torch import Tensor

from soka_cli.kron.factors import KronFactors


def term_spectrum(terms: KronFactors) -> Tensor:
    """Singular values of R(K), K = sum_k sigma_k U_k (x) V_k, for terms that need not be orthogonal or of norm 1.

    R(K) = L^T R with rows sigma_k vec(U_k) of L and vec(V_k) of R; two QR factorisations leave an r x r problem.

    Args:
        terms: U [r, m, n], V [r, p, q], sigma [r].

    Returns:
        [min(r, m*n, p*q)] fp64, descending.
    """
    left = (terms.sigma[:, None] * terms.left.flatten(1)).double().T  # (m*n, r)
    right = terms.right.flatten(1).double().T  # (p*q, r)
    _, left_triangle = torch.linalg.qr(left)
    _, right_triangle = torch.linalg.qr(right)
    return torch.linalg.svdvals(left_triangle @ right_triangle.T)


def update_terms(now: KronFactors, start: KronFactors) -> KronFactors:
    """K(theta) - K(theta0) as one Kronecker sum of 2r terms, exactly zero where nothing was learnt.

    sigma U (x) V - sigma0 U0 (x) V0 = (sigma U - sigma0 U0) (x) V + sigma0 U0 (x) (V - V0), so nothing large cancels.

    Args:
        now, start: terms of equal shapes.
    """
    scaled, scaled_start = (terms.sigma[:, None, None] * terms.left for terms in (now, start))
    return KronFactors(
        left=torch.cat([scaled - scaled_start, scaled_start]),
        right=torch.cat([now.right, now.right - start.right]),
        sigma=torch.ones(2 * now.rank, dtype=now.sigma.dtype, device=now.sigma.device),
    )
