"""How far true singular values may lie above computed ones: from residuals, and from a random probe of what was not looked at."""

from math import asinh, exp, lgamma, log, log10, sinh, sqrt

import torch
from torch import Tensor

MISS_PROBABILITY = 1e-10  # of one probe; a decomposition makes at most MAXIMUM_PROBES
MAXIMUM_PROBES = 10
SEPARATIONS = torch.logspace(-7, 0, 15, dtype=torch.float64)  # shares of the largest value at which upper bounds are read


def upper_values(projected: Tensor, residual_gram: Tensor, beyond: float, count: int) -> Tensor:
    """Upper bounds of the `count` largest eigenvalues of M = A A^T from a subspace U and the norm of M on its complement.

    With T = U^T M U, C the part of M U outside U and N = (I - U U^T) M (I - U U^T), the number of eigenvalues of M above
    t > ||N|| is that of positive eigenvalues of T - t + C^T (t - N)^-1 C (Haynsworth), so for every s > 0

        lambda_i(M) <= max(||N|| + s, lambda_i(T + C^T C / s)),

    the bound of Temple and Lehmann, quadratic in the residual where a gap separates the values from N.

    Args:
        projected: T, [k, k] fp64.
        residual_gram: C^T C, [k, k] fp64.
        beyond: an upper bound of ||N||.
        count: at most k.

    Returns:
        [count] fp64, descending.
    """
    separations = _separations(projected)
    ceilings = _ceilings(projected, residual_gram, separations, count)
    bounds = torch.maximum(beyond + separations[:, None], ceilings)
    last = int(bounds[:, -1].argmin())  # the least value is the hardest to bound: its separation is found more closely
    closer = _between(separations, last)
    closer_bounds = torch.maximum(beyond + closer[:, None], _ceilings(projected, residual_gram, closer, count))
    return torch.minimum(bounds.min(0).values, closer_bounds.min(0).values)


def largest_allowed_beyond(projected: Tensor, residual_gram: Tensor, limits: Tensor) -> float:
    """The largest `beyond` with which `upper_values` stays below the limits [count]; -infinity where none does."""
    separations = _separations(projected)
    room = _room(projected, residual_gram, limits, separations)  # (s, count)
    least = int(room.max(0).values.argmin())
    closer = _room(projected, residual_gram, limits, _between(separations, int(room[:, least].argmax())))
    return float(torch.maximum(room.max(0).values, closer.max(0).values).min())


def _room(projected: Tensor, residual_gram: Tensor, limits: Tensor, separations: Tensor) -> Tensor:
    ceilings = _ceilings(projected, residual_gram, separations, len(limits))
    return torch.where(ceilings <= limits, limits - separations[:, None], -torch.inf)


def _separations(projected: Tensor) -> Tensor:
    return SEPARATIONS * projected.diagonal().max().clamp(min=torch.finfo(torch.float64).tiny)


def _between(separations: Tensor, index: int) -> Tensor:
    """Values around one of the separations, more closely spaced."""
    low, high = float(separations[max(index - 1, 0)]), float(separations[min(index + 1, len(separations) - 1)])
    return torch.logspace(log10(low), log10(high), 12, dtype=torch.float64)


def _ceilings(projected: Tensor, residual_gram: Tensor, separations: Tensor, count: int) -> Tensor:
    """lambda_i(T + C^T C / s) for each separation, [s, count] descending."""
    values = torch.linalg.eigvalsh(projected + residual_gram / separations[:, None, None])
    return values[:, -count:].flip(1)


def excess(degree: int, moment: float, found: float, columns: int) -> float:
    """By what share the norm of a positive semi-definite N = B B^T may exceed what a random block Krylov space shows of it.

    The space is spanned by q(N) B W for polynomials q up to `degree`, W Gaussian with `columns` columns, `found` its largest
    Ritz value and `moment` = ||B W||^2. Let v be the right singular vector of ||N|| = (1 + h) found, and g = v^T W. With
    q = sin((n + 1/2) f) / sin(f / 2) at cos^2(f / 2) = x / found, (1 - x / found) q(x)^2 <= 1 below `found`, and above it
    (x / found - 1) q(x)^2 = sinh^2((2 n + 1) asinh sqrt(x / found - 1)). That no vector of the space exceeds `found` then gives

        sinh((2 n + 1) asinh sqrt(h)) <= sqrt(moment / found) / |g|,

    and |g|^2, chi-squared, is below the value taken here with a probability of at most MISS_PROBABILITY.
    (In the manner of Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992.)

    Returns:
        h, infinite where nothing was found.
    """
    if found <= 0.0 or degree < 0:
        return float("inf")
    return sinh(asinh(sqrt(moment / found / least_square(columns))) / (2 * degree + 1)) ** 2


def degree_needed(share: float, moment: float, found: float, columns: int) -> float:
    """The degree at which `excess` falls to `share`; infinite for none."""
    if share <= 0.0 or found <= 0.0:
        return 0.0 if found <= 0.0 else float("inf")
    return (asinh(sqrt(moment / found / least_square(columns))) / asinh(sqrt(share)) - 1) / 2


def least_square(columns: int) -> float:
    """x with P(chi^2_b <= x) <= (x / 2)^(b / 2) / Gamma(b / 2 + 1) = MISS_PROBABILITY."""
    return 2 * exp(2 / columns * (log(MISS_PROBABILITY) + lgamma(columns / 2 + 1)))


def clustered_bound(sigma: Tensor, residual: Tensor) -> Tensor:
    """An error bound for each of a full set of singular values from residuals r_k of orthonormal vectors.

    With H = [[0, A], [A^T, 0]] and unit vectors [u; v] / sqrt 2, as many singular values as a group has members lie within
    the Frobenius norm of the group's residual of its sigmas (Kahan; Parlett, The Symmetric Eigenvalue Problem, 11.5). Groups
    whose intervals are disjoint hold different singular values; groups that overlap are joined.
    """
    groups: list[tuple[list[float], float]] = []  # the sigmas, the sum of squared residuals
    for value, square in zip(sigma.tolist(), residual.square().tolist(), strict=True):
        members, total = [value], square
        while groups and groups[-1][0][-1] - groups[-1][1] ** 0.5 <= members[0] + total**0.5:
            above, above_total = groups.pop()
            members, total = above + members, above_total + total
        groups.append((members, total))
    return sigma.new_tensor([total**0.5 for members, total in groups for _ in members])
