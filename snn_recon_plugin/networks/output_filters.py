"""Temporal filters of outputs that each have their own, as an output neuron with a leak or a threshold each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .decode import SPIKE_READOUTS
from .filters import UnitResponses

__all__ = ["OutputFilters", "filters_of"]


@dataclass(frozen=True, eq=False)
class OutputFilters:
    """Linear scores ``sum_t filters[index[c], t] * current_c[t] + constants[c]``.

    Args:
        filters: ``[K, T]`` float64, the different filters.
        index: ``[C]``, which of them each output has.
        constants: ``[C]`` float64, the linear scores without any current.
        matrices: ``[K, T, T]`` float64, for scores at every step.
    """

    filters: Tensor
    index: Tensor
    constants: Tensor
    matrices: Tensor

    @property
    def gains(self) -> Tensor:
        """Share of a unit bias in each linear score, ``[C]``."""
        return self.filters.sum(1)[self.index]

    @property
    def step_gains(self) -> Tensor:
        """Share of a unit bias in each value at each step, ``[T, C]``."""
        return self.matrices.sum(2)[self.index].T


def filters_of(kind: str, weights: Tensor, units: UnitResponses) -> OutputFilters:
    """Give the filters of a readout.

    Spikes follow from a current over the threshold, whatever the leak; membranes grow with the leak as well.  So the linear score
    that stands in for spikes is the mean current as the membrane filters it over time, in units of the threshold.

    Args:
        kind: one of :data:`ALL_READOUTS`, or ``"custom"``.
        weights: ``[T]`` float64, the weight of each step in the score.
        units: the responses of the units.
    """
    filters, constants = torch.einsum("t,kts->ks", weights, units.matrices), units.rests @ weights
    gains = filters.sum(1)
    if kind in SPIKE_READOUTS and bool((gains > 0).all()):
        scales = gains[units.index].mean() / (gains * units.thresholds)
        filters, constants = filters * scales[:, None], constants * scales
    return OutputFilters(filters, units.index, constants[units.index], units.matrices)
