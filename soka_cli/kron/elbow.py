"""Whether a spectrum has an elbow at all; a rank rule names a place in any spectrum."""

import torch
from torch import Tensor

FALL = 0.5  # share that a singular value has to lose to the next one. The paper gives no number
NOTHING = 1e-12  # of sigma_1: smaller values are rounding


def clear_elbow(sigma: Tensor) -> int | None:
    """The terms before the steepest fall, where the singular value after it is at most half of the one before; None without such a fall.

    Args:
        sigma: [k] descending.
    """
    values = sigma.double()
    if len(values) < 2 or float(values[0]) <= 0.0:
        return None
    before, after = values[:-1], values[1:]
    falls = torch.where(before > NOTHING * values[0], 1 - after / before.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    place = int(falls.argmax())
    return place + 1 if float(falls[place]) >= FALL else None
