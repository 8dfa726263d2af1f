"""Neuron of a hidden layer: the currents at which it spikes, its membrane below that, and parameters of single units.

A candidate is simulated with separate values of such unit parameters, and these are written together with its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..networks.calls.calls import SpikeCounter
from ..networks.libraries import library_of
from ..networks.libraries.library import Trace
from ..networks.private.parameters import Values, with_values

_GRID = 400  # currents tried, in equal ratios
_LOG10_RANGE = (-4.0, 4.0)  # of these currents, in thresholds; covers a leak of 0.9999 and a synapse that passes a thousandth
_TRAIN_RATE = 0.2  # spike rate at which the weight of a relay is found
_TRAINS, _TRAINS_AT_ONCE = 32, 4  # spike trains, and those simulated together: all would take much memory
_PULSE = 0.1  # of the rheobase, below the threshold
_STEP_VALUES, _BLOCK_VALUES = 2**16, 2**21  # most values of a block at one step and at all steps; smaller blocks take longer
_GATHERED_BYTES = 2**25  # bound on the inputs gathered at a time


@dataclass(frozen=True)
class Excitability:
    """Currents and weights at which a layer's neuron spikes, over the net's steps, and its membrane below the threshold."""

    rheobase: float  # least constant current that causes a spike
    half_rate: float  # least constant current that causes half of the largest number of spikes
    relay_weight: float  # weight at which a neuron driven by one other neuron spikes about as often as that one
    kernel: Tensor  # (T,), membrane a number of steps after a current of one
    threshold: float  # membrane at which it spikes

    @property
    def latency(self) -> int:
        """Steps from an input to the first at which the membrane has changed."""
        return int((self.kernel != 0).long().argmax())

    def respond(self, currents: Tensor) -> Tensor:
        """Return the membrane at each step after currents ``[T, *]``, of the same shape."""
        steps = len(currents)
        age = torch.arange(steps)[:, None] - torch.arange(steps)
        matrix = torch.where(age >= 0, self.kernel.cpu()[age.clamp_min(0)], torch.zeros(()))
        return (matrix.to(currents) @ currents.flatten(1)).reshape(currents.shape)

    def trace(self, inputs: Tensor, samples: Tensor, steps: Tensor) -> Tensor:
        """Return what the membrane holds of the inputs (T, n, D) of samples (k,) at steps (k,), before any weight, (k, D)."""
        age = steps[:, None] - torch.arange(inputs.shape[0], device=steps.device)
        weights = torch.where(age >= 0, self.kernel[age.clamp_min(0)], self.kernel.new_zeros(()))
        size = max(1, _GATHERED_BYTES // (4 * inputs.shape[0] * inputs.shape[2]))
        parts = zip(torch.split(samples, size), torch.split(weights, size), strict=True)
        return torch.cat([torch.einsum("kt,tkd->kd", weight, inputs[:, index].to(weight)) for index, weight in parts])

    def average(self, inputs: Tensor, samples: Tensor, steps: Tensor) -> Tensor:
        """Return the average of the inputs so far, weighted as the membrane holds them, (k, D); zero before the latency."""
        held = self.kernel.cumsum(0)[steps]
        return self.trace(inputs, samples, steps) / torch.where(held == 0, torch.ones_like(held), held)[:, None]


def record_spikes(neuron: nn.Module, currents: Tensor, recurrent: Tensor) -> Tensor:
    """Return the spikes (T, n, P) of a neuron with recurrent weights (P, P) or (P,) on currents, bytes if all are 0 or 1."""
    spikes = library_of(neuron).run(neuron, currents, recurrent).spikes
    return spikes.to(torch.uint8) if bool(((spikes == 0) | (spikes == 1)).all()) else spikes


def split_in_blocks(samples: int, steps: int, widest: int) -> list[slice]:
    """Return blocks of samples to simulate together, whose tensors of ``widest`` values a sample and step are of limited size."""
    size = max(1, min(_STEP_VALUES, _BLOCK_VALUES // steps) // widest)
    return [slice(start, min(samples, start + size)) for start in range(0, samples, size)]


def run_units(neuron: nn.Module, currents: Tensor) -> Trace:
    """Simulate units of a neuron on currents ``[T, B, M]``; those of a recurrent neuron have no weights between them."""
    return library_of(neuron).run(neuron, currents, _keep_apart(neuron, currents))


def _count_spikes(neuron: nn.Module, currents: Tensor) -> Tensor:
    """Return the spikes (M,) of such units over all steps and samples."""
    counter = SpikeCounter()
    apart = _keep_apart(neuron, currents)
    library_of(neuron).each_step(neuron, currents, lambda spikes, _: counter.add(spikes), recurrent=apart)
    assert counter.spikes is not None
    return counter.spikes.float().view(currents.shape[-1])


def _keep_apart(neuron: nn.Module, currents: Tensor) -> Tensor | None:
    """Return zero recurrent weights, so that units don't interact; None if the neuron has none."""
    return None if library_of(neuron).recurrence(neuron) is None else currents.new_zeros(currents.shape[-1])


def measure_excitability(neuron: nn.Module, num_steps: int, like: Tensor) -> Excitability:
    """Measure a neuron by running it alone from rest, on the device and in the dtype of ``like``; refuse one that never spikes."""
    library = library_of(neuron)
    limits = library.threshold(neuron)
    if limits is None or limits[0] <= 0:
        raise _unsupported(neuron, "no positive threshold")
    grid = limits[1] * torch.logspace(*_LOG10_RANGE, _GRID, dtype=torch.float64).to(like)
    try:
        counts = _count_spikes(neuron, grid.expand(num_steps, 1, _GRID).contiguous())
    except RuntimeError as error:
        raise _unsupported(neuron, f"different parameters for each unit ({error})") from error
    most = float(counts.max())
    if most == 0:
        raise _unsupported(neuron, f"no spike within {num_steps} steps at any constant current")
    rheobase, half_rate = float(grid[int((counts > 0).nonzero()[0])]), float(grid[int((counts >= most / 2).nonzero()[0])])
    generator = torch.Generator().manual_seed(0)
    train = (torch.rand(num_steps, _TRAINS, 1, generator=generator) < _TRAIN_RATE).to(like)
    passed = sum((_count_spikes(neuron, part * grid) for part in torch.split(train, _TRAINS_AT_ONCE, 1)), torch.zeros_like(grid))
    relay_weight = float(grid[int((passed - train.sum()).abs().argmin())])
    kernel = _measure_kernel(neuron, num_steps, _PULSE * rheobase, like)
    return Excitability(rheobase, half_rate, relay_weight, kernel, rheobase * float(kernel.sum()))


def _measure_kernel(neuron: nn.Module, num_steps: int, pulse: float, like: Tensor) -> Tensor:
    currents = torch.zeros(num_steps, 1, 2).to(like)
    currents[0, 0, 0] = pulse
    membranes = run_units(neuron, currents).membranes[:, 0]
    return (membranes[:, 0] - membranes[:, 1]) / pulse


def _unsupported(neuron: nn.Module, found: str) -> UnsupportedModuleError:
    needed = "a neuron whose units share their parameters and spike at a large enough current"
    fix = "pass hidden='rescale', which keeps the layer's weights"
    return UnsupportedModuleError(f"{type(neuron).__name__} with {found}", needed, fix)


def read_unit_values(neuron: nn.Module, width: int) -> dict[str, Tensor]:
    """Return copies (N,) of parameters and saved buffers with one value for each of ``width`` units, (N,) or (N, 1, 1)."""
    named = *neuron.named_parameters(recurse=False), *neuron.named_buffers(recurse=False)
    membranes = neuron._non_persistent_buffers_set  # they are not saved
    values = {name: value.detach() for name, value in named if name not in membranes and value.dim() > 0}
    return {name: value.flatten().clone() for name, value in values.items() if width > 1 and value.numel() == width == len(value)}


def shape_unit_values(neuron: nn.Module, values: Mapping[str, Tensor] | None) -> Values:
    """Return values (N,) of all units in the shape that the neuron takes."""
    found = {}
    for name, value in (values or {}).items():
        present = getattr(neuron, name)
        found[neuron, name] = value.reshape(present.shape if present.numel() == len(value) > 1 else (-1,))
    return found


def place_unit_values(neuron: nn.Module, values: Mapping[str, Tensor] | None, rows: Tensor, width: int) -> Values:
    """Return the values of a layer in which some units (K,) take others (K,), in the shape that the neuron takes."""
    found = {}
    for name, value in (values or {}).items():
        present = getattr(neuron, name).detach().flatten().expand(width)
        found[name] = present.index_copy(0, rows, value.to(present))
    return shape_unit_values(neuron, found)


def average_units(neuron: nn.Module, width: int) -> AbstractContextManager[None]:
    """Replace unit parameters by their mean until the block ends; the same tensors are then put back."""
    return with_values({(neuron, name): value.mean() for name, value in read_unit_values(neuron, width).items()})


def merge_units(neuron: nn.Module, width: int) -> AbstractContextManager[None]:
    """Replace values that all units share by one until the block ends: the neuron can then simulate any number of units."""
    values = read_unit_values(neuron, width).items()
    return with_values({(neuron, name): value[0] for name, value in values if bool((value == value[0]).all())})
