"""Clock of a recurrent layer: neurons that fire one after the other, driven by a bias and each other.

If there are enough neurons for all steps, each spikes once and makes the next one spike.  Otherwise a neuron spikes for several
steps: it sustains itself while the next one charges, and that one stops it as soon as it spikes.  Weights are found by simulating
the layer's own neuron, so any equations will do, and the finished clock is simulated before it is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..networks import library_of
from .neuron import unit_currents

__all__ = ["Clock", "build_clock"]

_NEURONS_EACH = 16  # a clock takes at most one neuron in sixteen,
_PULSES_MORE = 2  # or twice as many where phases of several steps are impossible
_CHUNK = 256  # units simulated together: neurons that hold their weights take a matrix of this width
_MAX_DELAY = 4  # steps from a spike to the next neuron's
_HORIZON = 60  # steps after which a neuron that was to spike once has forgotten its input
_RETURNS = (0.0, -0.5, -0.65, -0.8, -1.0, -1.25)  # of the drive, that come back to a neuron after its spike
_STOP = 4.0  # inhibition that ends a phase, in units of all that excites the neuron
_MARGIN = 4  # neighbouring weights that must keep time too
_DRIVES = 80  # weights tried, in equal ratios


@dataclass(frozen=True)
class Clock:
    """A clock of P neurons."""

    recurrent: Tensor  # (P, P), weights between its neurons
    bias: Tensor  # (P,), currents at every step; only the first one is not zero
    spikes: Tensor  # (T, P)

    def __len__(self) -> int:
        return len(self.bias)


def build_clock(neuron: nn.Module, num_steps: int, width: int, autapses: bool, like: Tensor) -> Clock | None:
    """Return a clock for a layer of ``width`` that covers all steps; None if the neuron can't keep time, or the layer is narrow.

    Without ``autapses`` no neuron has a weight from itself but the first one, which silences it.
    """
    most = width // _NEURONS_EACH
    pulse = _find_pulse(neuron, min(num_steps, _HORIZON), autapses, like)
    pulses = num_steps if pulse is None else math.ceil(num_steps / pulse.delay)
    if autapses and 1 < most < pulses:
        least = math.ceil(num_steps / most)
        for length in (least, least + 1):
            clock = _plateaus(neuron, num_steps, length, like)
            if clock is not None:
                return clock
    return None if pulse is None or pulses > _PULSES_MORE * most else _chain(neuron, num_steps, pulse, like)


@dataclass(frozen=True)
class _Pulse:
    """Weights of a chain whose neurons spike once."""

    drive: float  # to the next neuron
    own: float  # to itself
    back: float  # to the one before
    delay: int  # steps from a neuron's spike to that of the next one


def _find_pulse(neuron: nn.Module, steps: int, autapses: bool, like: Tensor) -> _Pulse | None:
    """Return weights with which a neuron spikes once after its predecessor: those of least inhibition that leave a margin."""
    drives = unit_currents(neuron, like, _DRIVES)
    own = torch.tensor(_RETURNS if autapses else (0.0,)).to(drives)
    drive, own, back = (grid.flatten() for grid in torch.meshgrid(drives, own, torch.tensor(_RETURNS).to(drives), indexing="ij"))
    for delay in range(1, _MAX_DELAY + 1):
        currents = torch.zeros(max(steps, 2 * delay + 2), 1, len(drive)).to(drives)
        currents[1, 0] = drive
        currents[delay + 1, 0] += own * drive
        currents[2 * delay + 1, 0] += back * drive
        spikes = _simulate(neuron, currents)[:, 0]
        once = (spikes.sum(0) == 1) & (spikes[delay] == 1)
        valid = once.reshape(_DRIVES, -1)
        if bool(valid.any()):
            margins = valid.sum(0)
            best = int((margins >= min(_MARGIN, int(margins.max()))).nonzero()[0])  # the first has the least inhibition
            inside = valid[:, best].nonzero()[:, 0]
            row = int(inside[min(len(inside), 2 * _MARGIN) // 2]) * valid.shape[1] + best
            return _Pulse(float(drive[row]), float(own[row] * drive[row]), float(back[row] * drive[row]), delay)
    return None


def _chain(neuron: nn.Module, num_steps: int, pulse: _Pulse, like: Tensor) -> Clock | None:
    """Return a clock whose neurons spike once each, every ``pulse.delay`` steps."""
    count = math.ceil(num_steps / pulse.delay)
    recurrent = pulse.drive * torch.eye(count).roll(1, 0) + pulse.own * torch.eye(count) + pulse.back * torch.eye(count).roll(1, 1)
    recurrent[0] = -_STOP * pulse.drive  # it has a bias, and any other's spike silences it
    if count > 1:
        recurrent[-1, 0] = 0.0
    bias = torch.zeros(count)
    bias[0] = pulse.drive
    clock = _run(neuron, num_steps, recurrent, bias, like)
    return clock if bool((clock.spikes.sum(0) == 1).all()) else None


def _plateaus(neuron: nn.Module, num_steps: int, length: int, like: Tensor) -> Clock | None:
    """Return a clock whose neurons spike at every step of their phase of ``length`` steps, and one more."""
    drives = unit_currents(neuron, like, 4 * _DRIVES)
    constant = drives.expand(num_steps + length, 1, -1).clone()
    constant[0] = 0.0
    spikes = _simulate(neuron, constant)[:, 0]
    first = spikes.argmax(0)
    charging = ((first == length) & (spikes[length] == 1)).nonzero()[:, 0]
    steady = (spikes[_MAX_DELAY:] == 1).all(0).nonzero()[:, 0]
    if len(charging) == 0 or len(steady) == 0:
        return None
    charge, sustain = float(drives[charging[len(charging) // 2]]), 2 * float(drives[steady[0]])
    count = math.ceil(num_steps / length)
    eye = torch.eye(count)
    stop = _STOP * (sustain + charge)
    recurrent = charge * eye.roll(1, 0) + sustain * eye - stop * eye.roll(1, 1)
    recurrent[0] = -stop
    recurrent[0, 0] = recurrent[-1, 0] = 0.0
    bias = torch.zeros(count)
    bias[0] = sustain
    clock = _run(neuron, num_steps, recurrent, bias, like)
    starts = torch.where(clock.spikes.any(0), clock.spikes.argmax(0), num_steps)
    ordered = bool((starts.diff() > 0).all()) and int(starts[-1]) < num_steps
    short = int(clock.spikes.sum(0).max()) <= 2 * length + _MAX_DELAY
    return clock if ordered and short else None


def _run(neuron: nn.Module, num_steps: int, recurrent: Tensor, bias: Tensor, like: Tensor) -> Clock:
    currents = bias.to(like).expand(num_steps, 1, -1).contiguous()
    spikes = library_of(neuron).run(neuron, currents, recurrent.to(like)).spikes[:, 0]
    return Clock(recurrent, bias, spikes.cpu())


def _simulate(neuron: nn.Module, currents: Tensor) -> Tensor:
    """Return the spikes of units apart from each other, ``[T, 1, M]``."""
    parts = torch.split(currents, _CHUNK, 2)
    library = library_of(neuron)
    return torch.cat([library.run(neuron, part, part.new_zeros(part.shape[2])).spikes for part in parts], 2).cpu()
