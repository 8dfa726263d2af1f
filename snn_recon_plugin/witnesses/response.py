"""What a neuron makes of constant currents and of spikes: the numbers that candidates are scaled by, measured by running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import library_of

__all__ = ["Response", "measure_neuron"]

_GRID = 400  # currents tried, in equal ratios
_RANGE = (1e-4, 1e4)  # in units of the threshold: a leak of 0.9999 and a synapse that passes a thousandth lie within
_TRAIN_RATE = 0.2  # of the spikes by which a relay's weight is found
_TRAINS = 32
_LONG = 4  # times the net's steps, by which a pulse should be gone


@dataclass(frozen=True)
class Response:
    """Currents and weights, measured on one layer's neuron over the net's steps.

    Args:
        rest: rheobase, the least constant current that makes it spike at all.
        half: the least constant current that makes it spike in at least half of the steps in which it can.
        relay: weight at which a neuron fed by one other spikes about as often as that one.
        memory: what is left in the membrane of an input a step later, 0 to 1; of a neuron with a synapse of its own, the leak of
            one without that remembers for as long on average.
    """

    rest: float
    half: float
    relay: float
    memory: float = 0.0


def measure_neuron(neuron: nn.Module, num_steps: int, like: Tensor) -> Response:
    """Runs a neuron alone, from rest.

    Args:
        neuron: a neuron that can be simulated alone, all its units alike.
        num_steps: steps of the net, T.
        like: a tensor on the device and of the dtype that it runs with.

    Raises:
        UnsupportedModuleError: it can't be simulated alone, its units have parameters of their own, or no current makes it spike.
    """
    adapter = library_of(neuron)
    limits = adapter.threshold(neuron)
    if limits is None or limits[0] <= 0:
        raise _unsupported(neuron, "no positive threshold")
    low, high = _RANGE
    grid = limits[1] * torch.logspace(_log10(low), _log10(high), _GRID, dtype=torch.float64).to(like)
    try:
        counts = adapter.run(neuron, grid.expand(num_steps, 1, _GRID).contiguous()).spikes.sum((0, 1))
    except RuntimeError as error:
        raise _unsupported(neuron, f"units with parameters of their own ({error})") from error
    most = float(counts.max())
    if most == 0:
        raise _unsupported(neuron, f"no spike within {num_steps} steps at any constant current")
    rest, half = grid[int((counts > 0).nonzero()[0])], grid[int((counts >= most / 2).nonzero()[0])]
    generator = torch.Generator().manual_seed(0)
    train = (torch.rand(num_steps, _TRAINS, 1, generator=generator) < _TRAIN_RATE).to(like)
    passed = adapter.run(neuron, train * grid).spikes.sum((0, 1))
    relay = grid[int((passed - train.sum()).abs().argmin())]
    return Response(float(rest), float(half), float(relay), _memory(neuron, num_steps, 0.1 * rest))


def _memory(neuron: nn.Module, num_steps: int, pulse: Tensor) -> float:
    """How long an input too weak for a spike stays: from the mean delay d of a pulse, d = m / (1 - m)."""
    currents = pulse.new_zeros(_LONG * num_steps, 1, 2)
    currents[0, 0, 0] = pulse
    membranes = library_of(neuron).run(neuron, currents).membranes.double()
    left = (membranes[:, 0, 0] - membranes[:, 0, 1]).clamp_min(0.0)
    delay = float((left @ torch.arange(len(left), dtype=left.dtype, device=left.device)) / left.sum().clamp_min(1e-300))
    return delay / (1 + delay)


def _log10(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log10())


def _unsupported(neuron: nn.Module, found: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{type(neuron).__name__} with {found}",
        "a neuron whose units are alike and spike when a current is large enough",
        "pass hidden='rescale', which keeps the layer's own weights",
    )
