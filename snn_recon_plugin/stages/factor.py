"""Factor of the written readout: 1, or the smaller readout with the same decisions from which training goes on best.

A solved readout is several times larger than a fresh one.  Steps of an optimizer like Adam have the length of the learning rate,
so such a readout hardly turns while hidden layers change below it, and it multiplies their changes: the first epoch of training
then loses what was solved.  A smaller readout decides alike, and training improves on it (docs/evidence/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

LARGEST = 3.0  # relative size from which no smaller readout trains better (docs/evidence/training.md)
_HALVINGS = 2  # at most; with 1/8 the first epoch of Adam loses 4 points at the median of nets with spiking outputs
_TOLERANCE = 5e-3  # of an accuracy that still counts as alike (docs/evidence/decisions.md)


def choose_factor(size: float, accuracies: Callable[[float], Sequence[float]]) -> float:
    """Return the power of two, from 1 to 1/4, that a solved readout is written with.

    The readout is halved while it is larger than ``LARGEST`` and decides as well: no accuracy falls by more than half a point.
    Factors of membranes without a reset change no decision.

    Args:
        size: relative size of the solved readout.
        accuracies: of the readout times a factor, on the same samples for all factors: on held-out samples, and of the readout
            to write on all of them.
    """
    solved, factor = accuracies(1.0), 1.0
    for _ in range(_HALVINGS):
        if factor * size <= LARGEST or not all(map(_is_alike, accuracies(factor / 2), solved)):
            break
        factor /= 2
    return factor


def _is_alike(smaller: float, solved: float) -> bool:
    return smaller >= solved - _TOLERANCE


def relative_size(weight: Tensor, bias: Tensor | None) -> float:
    """Return the norm of a weight (C, P) and a bias, relative to the norm of a fresh ``nn.Linear``'s weight."""
    squares = sum(float(value.detach().double().square().sum()) for value in (weight, bias) if value is not None)
    return math.sqrt(squares / (len(weight) / 3))  # a fresh weight is uniform, of variance 1 / (3 P)
