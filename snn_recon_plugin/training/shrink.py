"""The size of the readout that training begins from.

A solved readout is several times larger than the network's own.  Steps of an optimizer like Adam have the length of the learning
rate, so such a readout hardly turns while hidden layers change below it, and multiplies their changes.  On 60,000 images the
network then lost in an epoch what was solved.  Training therefore begins from a smaller one that decides alike; what is evaluated
is the solved one, until training has passed it (docs/evidence/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..networks import overwrite
from ..report import Report

LARGEST = 6.0  # norm of the readout, relative to the one that was replaced


def shrink_readout(report: Report, largest: float = LARGEST) -> float:
    """Halve the written readout until it is at most ``largest`` times as large as the one before; return its factor.

    It is a power of two, so scores shrink without rounding, and every decision stays.  Regression, spikes and membranes that reset
    have no such factor, and keep their readout.
    """
    replaced = dict(report.replaced)
    parameters = report.sample.rescalable
    if not parameters or any(parameter not in replaced for parameter in parameters):
        return 1.0
    size, before = _norm(parameters), _norm(replaced[parameter] for parameter in parameters)
    if not (0 < before < math.inf and size > largest * before):  # a readout of zeros has no size to return to
        return 1.0
    factor = 2.0 ** -math.ceil(math.log2(size / (largest * before)))
    with torch.no_grad():
        for parameter in parameters:
            overwrite(parameter, factor * parameter)
    return factor


def _norm(values: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(value.detach().double().square().sum()) for value in values))
