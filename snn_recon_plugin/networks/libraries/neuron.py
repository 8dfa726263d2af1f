"""Facts about a neuron in the same words for every library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Dynamics", "Recurrence", "Synapse", "Trace"]


@dataclass(frozen=True)
class Trace:
    """Spikes and membranes of a neuron over time.

    Args:
        spikes: ``[T, B, *]``, the neuron's output; its membrane if it never spikes.
        membranes: ``[T, B, *]``, after each step.
    """

    spikes: Tensor
    membranes: Tensor


@dataclass(frozen=True)
class Synapse:
    """Weights that a neuron module holds for its inputs, such as the Linear inside ``snn.LinearLeaky``.

    Args:
        module: the module that holds the weight; the neuron itself where it holds a raw parameter.
        weight: the weight's name in that module, or None if it isn't one matrix ``[out, in]`` alone.
        bias: the bias's name, or None without one.
        scaled: module and name of each parameter that a gain of the inputs multiplies.
    """

    module: nn.Module
    weight: str | None = None
    bias: str | None = None
    scaled: tuple[tuple[nn.Module, str], ...] = ()


@dataclass(frozen=True)
class Recurrence:
    """Weights through which a layer's spikes return to it one step later.

    Args:
        weight: module and name of the matrix ``[N, N]``; None if the recurrence is not dense.
        inputs: module and name of the matrix ``[N, D]`` from the inputs, if the neuron holds it itself.
        bias: the recurrence's own bias ``[N]``, or None.
        autapses: whether a unit's own spike returns to it.
        units: number of units N that it was built for, or None if unknown.
    """

    weight: tuple[nn.Module, str] | None
    inputs: tuple[nn.Module, str] | None = None
    bias: Tensor | None = None
    autapses: bool = True
    units: int | None = None


@dataclass(frozen=True)
class Dynamics:
    """One step of a neuron: ``i = synapse i + current``, then ``u = leak u + gain i + rest``, then a spike if u > threshold.

    A reset depends on the neuron's own spikes.  Once these are given, the membrane before each spike is affine in the weights.

    Args:
        leak: factor of the membrane per step.
        gain: factor of the current.
        synapse: factor of the synaptic current per step; 0 without a synaptic state.
        rest: added to the membrane at each step.
        start: initial membrane.
        threshold: of the membrane.
        subtract: subtracted from the membrane one step after a spike.
        reset: value of the membrane after a spike; None if a spike only subtracts.
        recurrent: whether the layer's spikes return to it one step later.
        autapses: whether a unit's own spike returns to it.
    """

    leak: float
    gain: float
    synapse: float
    rest: float
    start: float
    threshold: float
    subtract: float
    reset: float | None
    recurrent: bool
    autapses: bool

    def filter(self, sources: Tensor, spikes: Tensor) -> tuple[Tensor, Tensor]:
        """Filter the inputs of one neuron up to its membrane.

        Args:
            sources: ``[T, n, D]``, inputs of the neuron before its weights.
            spikes: ``[T, n]``, the neuron's own spikes, 0 or 1.

        Returns:
            Filtered inputs ``[T, n, D]`` and the membrane's offset ``[T, n]``: the membrane is their sum with weights plus offset.
        """
        current, membrane = torch.zeros_like(sources[0]), torch.zeros_like(sources[0])
        offset, spiked = torch.full_like(spikes[0], self.start), torch.zeros_like(spikes[0])
        filtered, offsets = [], []
        for step, source in enumerate(sources):
            if self.reset is not None:
                kept = 1 - spiked
                membrane, offset = membrane * kept[:, None], offset * kept + self.reset * spiked
            current = self.synapse * current + source
            membrane = self.leak * membrane + self.gain * current
            offset = self.leak * offset + self.rest - self.subtract * spiked
            filtered.append(membrane)
            offsets.append(offset)
            spiked = spikes[step]
        return torch.stack(filtered), torch.stack(offsets)
