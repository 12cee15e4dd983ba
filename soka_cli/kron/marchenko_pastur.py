"""Singular values of pure noise: the Marchenko-Pastur law, and where Gavish and Donoho cut it off.

For a matrix of a x b independent entries of standard deviation s, a <= b, beta = a / b, the squares of its singular values
over b s^2 fill the interval (1 +- sqrt(beta))^2. With t = 1 + beta - 2 sqrt(beta) cos(phi), 0 <= phi <= pi, the law is

    F(phi) = (phi + r sin(phi) - (1 - r^2) (atan2(r sin(phi), 1 - r cos(phi)) - r sin(phi)) / r^2) / pi,   r = sqrt(beta),

the integral of its density in closed form, so that no quadrature and no fitted polynomial stands between it and its median.

Source: Gavish and Donoho, The Optimal Hard Threshold for Singular Values is 4/sqrt(3), IEEE Trans. Inf. Theory 60 (2014).
"""

from functools import cache
from math import atan2, cos, pi, sin, sqrt


def hard_threshold(beta: float) -> float:
    """lambda(beta): singular values above lambda(beta) sqrt(b) s are worth keeping, for known noise s. 4 / sqrt(3) at beta = 1.

    Args:
        beta: smaller side over larger side, in (0, 1].
    """
    return sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + sqrt(beta * beta + 14 * beta + 1)))


def median_threshold(beta: float) -> float:
    """omega(beta) = lambda(beta) / sqrt(mu): the same threshold as a multiple of the median singular value, for unknown noise.

    Exact to fp64; the published cubic 0.56 beta^3 - 0.95 beta^2 + 1.82 beta + 1.43 is off by up to 0.02.
    """
    return hard_threshold(beta) / sqrt(noise_median(beta))


@cache
def noise_median(beta: float) -> float:
    """mu: the median of the Marchenko-Pastur law, by bisection of F(phi) = 1/2 to the last bit."""
    low, high = 0.0, pi
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if distribution(middle, beta) < 0.5 else (low, middle)
    return 1 + beta - 2 * sqrt(beta) * cos(middle)


def distribution(phi: float, beta: float) -> float:
    """F(phi): the share of noise's squared singular values below t(phi)."""
    root = sqrt(beta)
    arc = atan2(root * sin(phi), 1 - root * cos(phi)) - root * sin(phi)
    return (phi + root * sin(phi) - (1 - beta) * arc / beta) / pi
