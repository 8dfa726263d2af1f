"""The size of the readout that training begins from.

A solved readout is several times larger than a fresh one.  Steps of an optimizer like Adam have the length of the learning rate, so
such a readout hardly turns while hidden layers change below it, and multiplies their changes.  On 60,000 images the network then
lost in an epoch what was solved.  Training therefore begins from a smaller one that decides alike; what is evaluated is the solved
one, until training has passed it (docs/evidence/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..networks import overwrite
from ..report import Report

LARGEST = 6.0  # norm of the readout, relative to that of a fresh one


def shrink_readout(report: Report, largest: float = LARGEST) -> float:
    """Halve the written readout until it is at most ``largest`` times as large as torch draws a fresh one; return its factor.

    It is a power of two, so scores shrink without rounding, and every decision stays.  Regression, spikes and membranes that reset
    have no such factor, and keep their readout.
    """
    parameters, written = report.sample.rescalable, set(report.parameters)
    if not parameters or not written.issuperset(parameters) or (size := relative_size(parameters)) <= largest:
        return 1.0
    factor = 2.0 ** -math.ceil(math.log2(size / largest))
    with torch.no_grad():
        for parameter in parameters:
            overwrite(parameter, factor * parameter)
    return factor


def relative_size(readout: Sequence[Tensor]) -> float:
    """Return the norm of a weight (C, P), with its bias if any, relative to the norm of a fresh ``nn.Linear``'s weight."""
    squares = sum(float(value.detach().double().square().sum()) for value in readout)
    return math.sqrt(squares / (len(readout[0]) / 3))  # a fresh weight is uniform, of variance 1 / (3 P)
