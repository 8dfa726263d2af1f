"""What a hidden layer's neurons do when its weights and bias are multiplied by a gain, without a change to the layer.

A neuron that can be simulated alone is run on the layer's currents times the gain, which takes a fraction of a forward pass.  One
that can't, as it holds weights of its own or feeds its spikes back, is watched in the net, run with the multiplied parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from snn_recon_plugin.errors import SilentLayerError, UnsupportedModuleError
from snn_recon_plugin.networks import (
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

__all__ = ["LayerTrial", "can_scale", "first_samples", "fixed_reason", "scaled_values", "trial_of"]

_SOME = 64  # samples on which a firing rate is measured while a gain is searched


def scaled_values(layer: HiddenLayer, gain: float) -> dict[tuple[nn.Module, str], Tensor]:
    """Weight and bias of a layer's synapse times ``gain``, by module and parameter name.

    Of a neuron that is its own synapse these are the weights of its input.
    """
    return {
        (module, name): getattr(module, name).detach() * gain for module, name in _parameters(layer) if can_replace(module, name)
    }


def can_scale(layer: HiddenLayer, layers: Sequence[HiddenLayer] = ()) -> bool:
    """Whether the layer's weight and bias are there and all of them can be multiplied."""
    return not fixed_reason(layer, layers)


def fixed_reason(layer: HiddenLayer, layers: Sequence[HiddenLayer] = ()) -> str:
    """Reason why nothing may be written into the layer's weight and bias; empty where both can be multiplied.

    A layer of which one is frozen stays as it is: a gain of the other alone would change what the neurons do.

    Args:
        layer: the layer.
        layers: all hidden layers of the net: what a shared synapse or neuron gets for one of them, the others would get too.
    """
    for other in layers:
        if other is not layer and (other.synapse is layer.synapse or other.neuron is layer.neuron):
            part = "synapse" if other.synapse is layer.synapse else "neuron"
            pairs = " and ".join(f"{one.name!r} with {one.neuron_name!r}" for one in (layer, other))
            return f"the same {part} serves two layers: {pairs}"
    parameters = _parameters(layer)
    if not parameters:
        return f"a {type(layer.synapse).__name__} without a weight of its own"
    frozen = [name for module, name in parameters if is_frozen(module, name)]
    if frozen:
        return f"frozen: requires_grad=False of its {' and its '.join(frozen)}"
    for module, name in parameters:
        if not can_replace(module, name):
            return f"its {name} is computed by {find_computation(module, name) or 'a parametrization that can not be inverted'}"
    return ""


def _parameters(layer: HiddenLayer) -> list[tuple[nn.Module, str]]:
    """Return module and name of each parameter before the neuron; a gain on recurrent weights would change the dynamics."""
    own = library_of(layer.neuron).synapse(layer.neuron) if layer.synapse is layer.neuron else None
    if own is not None:
        return list(own.scaled)
    return [(layer.synapse, name) for name in ("weight", "bias") if isinstance(getattr(layer.synapse, name, None), Tensor)]


def first_samples(batches: Sequence[StoredBatch], samples: int = _SOME) -> Sequence[StoredBatch]:
    """The first batches that hold so many samples, by default as many as a firing rate is measured on."""
    count, number = 0, 0
    while count < samples and number < len(batches):
        count, number = count + batches[number].rows.stop - batches[number].rows.start, number + 1
    return batches[:number]


class LayerTrial(Protocol):
    """A layer whose gain is to be chosen."""

    def spikes(self, gain: float) -> Tensor:
        """What the layer emits with a gain, ``[T, n, *]``."""
        ...

    def rate(self, gain: float) -> float:
        """Spikes a neuron and step with a gain, on some of the samples."""
        ...

    def scales(self, gain: float) -> bool:
        """Whether a gain, written to the layer's parameters, does what was tried."""
        ...


def trial_of(net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> LayerTrial:
    """The cheapest trial that the layer's neuron allows.

    Args:
        net: the net, held by ``preserved``, with the gains of the layers below.
        batches: the samples.
        layer: the layer.
        forward: how the net is called.

    Raises:
        SilentLayerError: no current of the layer is above zero, so that no gain makes it spike.
    """
    if layer.synapse is layer.neuron:
        return _InNet(net, batches, layer, forward)
    currents = neuron_currents(net, batches, layer, forward)
    try:
        alone = _Alone(net, batches, layer, forward, currents)
    except UnsupportedModuleError:
        return _InNet(net, batches, layer, forward)
    if not bool((currents > 0).any()) and not bool(alone.spikes(1.0).any()):
        raise SilentLayerError(
            f"hidden layer {layer.name!r} receives no positive current, so that no gain makes it spike",
            "a current above zero for some sample and step",
            "check the inputs' sign and scale, or the layer's bias",
        )
    return alone


class _Alone:
    """The neuron, simulated on the layer's currents."""

    def __init__(
        self, net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, currents: Tensor
    ) -> None:
        self._net, self._batches, self._layer, self._forward = net, batches, layer, forward
        self._currents, self._adapter = currents, library_of(layer.neuron)
        self._own = self._adapter.run(layer.neuron, currents).spikes

    def spikes(self, gain: float) -> Tensor:
        return self._own if gain == 1.0 else self._adapter.run(self._layer.neuron, self._currents * gain).spikes

    def rate(self, gain: float) -> float:
        return float(self._adapter.run(self._layer.neuron, self._currents[:, :_SOME] * gain).spikes.float().mean())

    def scales(self, gain: float) -> bool:
        """Whether the neuron's current is multiplied by ``gain`` when the parameters are: not with a normalisation after them."""
        with replace_parameters(scaled_values(self._layer, gain)):
            scaled = neuron_currents(self._net, self._batches[:1], self._layer, self._forward)
        expected = self._currents[:, : scaled.shape[1]] * gain
        # Recurrent or stateful paths may let later steps differ; the first step sees the scaled weights alone.
        return bool(torch.allclose(scaled[0], expected[0], rtol=1e-3, atol=1e-4 * float(expected[0].abs().max()) + 1e-12))


class _InNet:
    """The neuron as the net runs it."""

    def __init__(self, net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> None:
        self._net, self._batches, self._layer, self._forward = net, batches, layer, forward
        self._some = first_samples(batches)
        self.rate = lru_cache(maxsize=None)(self._rate)  # searches for several rates pass through the same gains

    def spikes(self, gain: float) -> Tensor:
        return self._run(self._batches, gain)

    def _rate(self, gain: float) -> float:
        return float(self._run(self._some, gain).float().mean())

    def scales(self, gain: float) -> bool:
        """True: what was tried is the net itself."""
        del gain
        return True

    def _run(self, batches: Sequence[StoredBatch], gain: float) -> Tensor:
        """Run the net with the multiplied parameters and record what the neuron emits, ``[T, n, *]``."""
        values = {} if gain == 1.0 else scaled_values(self._layer, gain)
        with replace_parameters(values):
            return neuron_spikes(self._net, batches, self._layer, self._forward)
