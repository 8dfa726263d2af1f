"""Hidden layers whose weights and bias are multiplied by a gain, without a change to the layer.

A neuron that can be simulated alone runs on the layer's currents times the gain, in a fraction of a forward pass.  A neuron with
input weights or recurrence runs in the net, with multiplied parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks import (
    Forward,
    HiddenLayer,
    StoredBatch,
    can_replace,
    find_computation,
    is_frozen,
    library_of,
    neuron_currents,
    neuron_spikes,
    replace_parameters,
)
from .hidden_task import ParameterValues

__all__ = [
    "InNetLayer",
    "ScaledLayer",
    "StandaloneLayer",
    "can_scale",
    "explain_fixed",
    "make_scaled_layer",
    "scale_parameters",
    "take_first_batches",
]

_RATE_SAMPLES = 64  # samples on which a firing rate is measured during the search for a gain


def scale_parameters(layer: HiddenLayer, gain: float) -> ParameterValues:
    """Return the weight and bias of a layer's synapse times ``gain``; for a neuron with its own synapse, its input weights."""
    return {
        (module, name): getattr(module, name).detach() * gain
        for module, name in _list_parameters(layer)
        if can_replace(module, name)
    }


def can_scale(layer: HiddenLayer, layers: Sequence[HiddenLayer] = ()) -> bool:
    """Return whether the layer has a weight and its weight and bias can be multiplied."""
    return not explain_fixed(layer, layers)


def explain_fixed(layer: HiddenLayer, layers: Sequence[HiddenLayer] = ()) -> str:
    """Return the reason why the layer's weight and bias can't be written; empty if they can.

    If one of them is frozen, the layer stays as it is: a gain of the other one would change what the neurons compute.

    Args:
        layer: the layer.
        layers: all hidden layers of the net, to find synapses and neurons that several layers share.
    """
    for other in layers:
        if other is not layer and (other.synapse is layer.synapse or other.neuron is layer.neuron):
            part = "synapse" if other.synapse is layer.synapse else "neuron"
            pairs = " and ".join(f"{one.name!r} with {one.neuron_name!r}" for one in (layer, other))
            return f"the same {part} serves two layers: {pairs}"
    parameters = _list_parameters(layer)
    if not parameters:
        return f"a {type(layer.synapse).__name__} without a weight of its own"
    frozen = [name for module, name in parameters if is_frozen(module, name)]
    if frozen:
        return f"frozen: requires_grad=False of its {' and its '.join(frozen)}"
    for module, name in parameters:
        if not can_replace(module, name):
            return f"its {name} is computed by {find_computation(module, name) or 'a parametrization that can not be inverted'}"
    return ""


def _list_parameters(layer: HiddenLayer) -> list[tuple[nn.Module, str]]:
    """Return the modules and names of the parameters before the neuron; a gain of recurrent weights would change the dynamics."""
    own = library_of(layer.neuron).synapse(layer.neuron) if layer.synapse is layer.neuron else None
    if own is not None:
        return list(own.scaled)
    return [(layer.synapse, name) for name in ("weight", "bias") if isinstance(getattr(layer.synapse, name, None), Tensor)]


def take_first_batches(batches: Sequence[StoredBatch], samples: int = _RATE_SAMPLES) -> Sequence[StoredBatch]:
    """Return the first batches that hold at least ``samples``."""
    count, number = 0, 0
    while count < samples and number < len(batches):
        count, number = count + batches[number].size, number + 1
    return batches[:number]


class ScaledLayer(Protocol):
    """Contract of a layer whose gain is chosen."""

    def spikes(self, gain: float) -> Tensor:
        """Return the layer's spikes with a gain, ``[T, n, *]``."""
        ...

    def rate(self, gain: float) -> float:
        """Return the spikes a neuron and step with a gain, on some of the samples."""
        ...

    def confirms(self, gain: float) -> bool:
        """Return whether a gain of the layer's parameters has the simulated effect."""
        ...


def make_scaled_layer(net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> ScaledLayer:
    """Return the cheapest simulation that the layer's neuron allows.

    Args:
        net: the net, held by ``preserved``, with the new values of the layers below.
        batches: the samples.
        layer: the layer.
        forward: how the net is called.

    Raises:
        SilentLayerError: no current of the layer is positive, so no gain makes it spike.
    """
    if layer.synapse is layer.neuron:
        return InNetLayer(net, batches, layer, forward)
    currents = neuron_currents(net, batches, layer, forward)
    try:
        alone = StandaloneLayer(net, batches, layer, forward, currents)
    except UnsupportedModuleError:
        return InNetLayer(net, batches, layer, forward)
    if not bool((currents > 0).any()) and not bool(alone.spikes(1.0).any()):
        raise SilentLayerError(
            f"hidden layer {layer.name!r} receives no positive current, so that no gain makes it spike",
            "a current above zero for some sample and step",
            "check the inputs' sign and scale, or the layer's bias",
        )
    return alone


class StandaloneLayer:
    """The layer's neuron, simulated on its currents."""

    def __init__(
        self, net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, currents: Tensor
    ) -> None:
        self._net = net
        self._batches = batches
        self._layer = layer
        self._forward = forward
        self._currents, self._library = currents, library_of(layer.neuron)
        self._unscaled = self._library.run(layer.neuron, currents).spikes

    def spikes(self, gain: float) -> Tensor:
        """Return the spikes with a gain."""
        return self._unscaled if gain == 1.0 else self._library.run(self._layer.neuron, self._currents * gain).spikes

    def rate(self, gain: float) -> float:
        """Return the firing rate with a gain."""
        return float(self._library.run(self._layer.neuron, self._currents[:, :_RATE_SAMPLES] * gain).spikes.float().mean())

    def confirms(self, gain: float) -> bool:
        """Return whether the neuron's current scales with the parameters; a normalisation in between prevents it."""
        with replace_parameters(scale_parameters(self._layer, gain)):
            scaled = neuron_currents(self._net, self._batches[:1], self._layer, self._forward)
        expected = self._currents[:, : scaled.shape[1]] * gain
        # Recurrent or stateful paths may change later steps; the first step depends on the scaled weights alone.
        return bool(torch.allclose(scaled[0], expected[0], rtol=1e-3, atol=1e-4 * float(expected[0].abs().max()) + 1e-12))


class InNetLayer:
    """The layer, run in the net with multiplied parameters."""

    def __init__(self, net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> None:
        self._net = net
        self._batches = batches
        self._layer = layer
        self._forward = forward
        self._few = take_first_batches(batches)
        self.rate = lru_cache(maxsize=None)(self._rate)  # searches for several rates try the same gains

    @cached_property
    def _unscaled(self) -> Tensor:
        return self._run(self._batches, 1.0)

    def spikes(self, gain: float) -> Tensor:
        """Return the spikes with a gain."""
        return self._unscaled if gain == 1.0 else self._run(self._batches, gain)

    def _rate(self, gain: float) -> float:
        return float(self._run(self._few, gain).float().mean())

    def confirms(self, gain: float) -> bool:
        """Return True: the net itself was run."""
        del gain
        return True

    def _run(self, batches: Sequence[StoredBatch], gain: float) -> Tensor:
        values = {} if gain == 1.0 else scale_parameters(self._layer, gain)
        with replace_parameters(values):
            return neuron_spikes(self._net, batches, self._layer, self._forward)
