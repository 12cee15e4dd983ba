"""Principal angles between the spans of two sets of factors."""

import torch
from torch import Tensor


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles between the spans of two sets of matrices, each matrix taken as one long vector.

    Large angles come from the cosines, small ones from the sines, so that both keep their digits.

    Args:
        first, second: [r, a, b] factors of one size; U and U0, or V and V0.

    Returns:
        [k] fp64, radians in [0, pi/2], descending; k is the dimension of the smaller span, 0 where a set is all zeros.

    Source: Knyazev and Argentati, Principal angles between subspaces in an A-based scalar product, 2002.
    """
    basis, other = sorted((_basis(factors) for factors in (first, second)), key=lambda span: span.shape[1])  # (a*b, k)
    cosines = torch.linalg.svdvals(other.T @ basis).clamp(max=1.0)  # descending
    sines = torch.linalg.svdvals(basis - other @ (other.T @ basis)).clamp(max=1.0).flip(0)  # ascending, of the same angles
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin()).flip(0)


def _basis(factors: Tensor) -> Tensor:
    """Orthonormal columns that span the same; how long a factor is says nothing about its direction."""
    columns = factors.flatten(1).double().T  # (a*b, r)
    lengths = columns.norm(dim=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, sizes > torch.finfo(torch.float64).eps * max(columns.shape) * sizes.max()] if columns.numel() else columns
