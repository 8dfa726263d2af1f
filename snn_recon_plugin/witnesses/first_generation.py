"""First generation of a recurrent layer: a clock, or a random reservoir."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import library_of
from .clock import build_clock

__all__ = ["First", "make_clock", "make_reservoir"]


@dataclass(frozen=True)
class First:
    """First generation of a layer: neurons that hear the inputs and each other."""

    kind: str
    inputs: Tensor  # (P, D)
    recurrent: Tensor  # (P, P)
    tonic: Tensor  # (P,)
    spikes: Tensor  # (T, n, P), or (T, 1, P) if the inputs don't change them
    latches: int = 0  # number of its last neurons that hold an event

    def __len__(self) -> int:
        return len(self.tonic)

    @property
    def heard(self) -> Tensor:
        """Its spikes at the step at which the others hear them, one later."""
        return torch.cat([torch.zeros_like(self.spikes[:1]), self.spikes[:-1]])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each neuron, (P,)."""
        return (self.kind,) * (len(self) - self.latches) + ("latches",) * self.latches


def make_clock(neuron: nn.Module, inputs: Tensor, steps: int, width: int, tonic: bool, autapses: bool) -> First | None:
    """Return a clock for a layer of ``width``; None if its neuron can't keep time, or the layer is too narrow.

    Without a ``tonic`` current the first input of a sample starts the clock.
    """
    clock = build_clock(neuron, steps, width, autapses, inputs.new_zeros(()))
    if clock is None:
        return None
    recurrent, bias = clock.recurrent.to(inputs), clock.bias.to(inputs)
    rows = inputs.new_zeros(len(clock), inputs.shape[2])
    if tonic:
        return First("clock", rows, recurrent, bias, clock.spikes[:, None].to(inputs))
    return _start_by_inputs(neuron, inputs, recurrent, float(bias[0]))


def _start_by_inputs(neuron: nn.Module, inputs: Tensor, recurrent: Tensor, drive: float) -> First | None:
    """Return a clock whose first neuron spikes once, at the first input; a twin keeps it from a second spike."""
    sums = inputs.to(recurrent).sum(2)
    onset = sums.gather(0, (sums != 0).float().argmax(0)[None])[0]
    usual = float(onset.quantile(0.1))
    if usual <= 0:  # inputs of both signs, or none
        return None
    rows = recurrent.new_zeros(len(recurrent) + 1, inputs.shape[2])
    rows[0] = rows[-1] = 2 * drive / usual
    stop = 4 * float(rows[0, 0] * sums.max())
    joined = functional.pad(recurrent, [0, 1, 0, 1])
    joined[0, 1:] = joined[-1, :-1] = -stop
    joined[0, 0] = 0.0
    first = make_reservoir(neuron, inputs, rows, recurrent.new_zeros(len(rows)), joined)
    return replace(first, kind="clock")


def make_reservoir(neuron: nn.Module, inputs: Tensor, weight: Tensor, tonic: Tensor, recurrent: Tensor) -> First:
    """Return some neurons of a whole-layer draw as a first generation."""
    currents = functional.linear(inputs.to(weight), weight, tonic)
    spikes = library_of(neuron).run(neuron, currents, recurrent).spikes
    return First("reservoir", weight, recurrent, tonic, spikes)
