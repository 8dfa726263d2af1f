"""Factor of the written readout: 1, or the smaller readout with the same decisions from which training goes on best.

A solved readout is several times larger than a fresh one.  Steps of an optimizer like Adam have the length of the learning rate,
so such a readout hardly turns while hidden layers change below it, and it multiplies their changes: the first epoch of training
then loses what was solved.  A smaller readout decides alike, and training improves on it (docs/evidence/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from .fit import HeldOut

LARGEST = 3.0  # relative size from which no smaller readout trains better (docs/evidence/training.md)
_HALVINGS = 2  # at most; with 1/8 the first epoch of Adam loses 4 points at the median of nets with spiking outputs


def choose_factor(size: float, heldout: Callable[[float], HeldOut]) -> float:
    """Return the power of two, from 1 to 1/4, that a solved readout is written with.

    The readout is halved while it is larger than ``LARGEST`` and decides as well: its held-out accuracy stays within one standard
    error.  Factors of membranes without a reset change no decision.

    Args:
        size: relative size of the solved readout.
        heldout: results on held-out samples of the readout times a factor.
    """
    solved, factor = heldout(1.0), 1.0
    least = solved.accuracy - standard_error(solved)
    for _ in range(_HALVINGS):
        if factor * size <= LARGEST or not heldout(factor / 2).accuracy >= least:
            break
        factor /= 2
    return factor


def standard_error(found: HeldOut) -> float:
    """Return the standard error of a held-out accuracy."""
    return math.sqrt(max(0.0, found.accuracy * (1 - found.accuracy)) / max(1, found.samples))


def relative_size(weight: Tensor, bias: Tensor | None) -> float:
    """Return the norm of a weight (C, P) and a bias, relative to the norm of a fresh ``nn.Linear``'s weight."""
    squares = sum(float(value.detach().double().square().sum()) for value in (weight, bias) if value is not None)
    return math.sqrt(squares / (len(weight) / 3))  # a fresh weight is uniform, of variance 1 / (3 P)
