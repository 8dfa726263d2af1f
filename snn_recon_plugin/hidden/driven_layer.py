"""Hidden layer with a gain: alone on recorded currents where that gives the net's own spikes, or in the net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks.calls.calls import CallRecorder
from ..networks.calls.spikes import FilteredSpikes, SpikeCounter, SpikeSums
from ..networks.libraries import library_of
from ..networks.private.parameters import Values, can_replace, find_computation, is_frozen, with_values
from ..networks.structure.layers import HiddenLayer
from .hidden_task import FEW_SAMPLES, HiddenTask, take_some

CURRENT_BYTES = 2**29  # currents of a layer at all steps that are kept at most
_LOG2_GAINS = (-10.0, 12.0)  # range of the search; silent convolutional nets need 3 to 6, Norse nets about 20
_HALVINGS = 12


@dataclass(frozen=True)
class DrivenLayer:
    """A hidden layer whose neuron gets its currents, less an excess, times a gain."""

    recorder: CallRecorder  # of the net, on the samples to run
    layer: HiddenLayer  # one of its hidden layers
    few: int | None = None  # samples on which firing rates are measured; None for all
    currents: Tensor | None = None  # ``[T, n, *]`` without the excess, on which the neuron runs alone; None runs it in the net
    excess: Tensor | None = None  # (C,), for each entry of the bias, what it takes from the currents; None leaves the bias as it is
    _rates: dict[float, float] = field(default_factory=dict, init=False)  # by gain: searches for several rates try the same ones

    def values(self, gain: float) -> Values:
        """Return the values to write for a gain; none for the layer as it is."""
        if self.excess is None:
            return {} if gain == 1.0 else scale_parameters(self.layer, gain)
        values = dict(scale_parameters(self.layer, gain))
        place = next(place for place in values if place[1] == "bias")
        values[place] = values[place] - gain * along(self.excess, values[place], axis=0)
        return values

    def run(self, visit: Callable[[Tensor], None], gain: float = 1.0, samples: int | None = None) -> None:
        """Call ``visit`` with the spikes (B, *) of each step, of all samples or at least the first ones."""
        if self.currents is not None:
            _run_alone(self.layer.neuron, self.currents[:, :samples], gain, visit)
            return
        recorder = self.recorder if samples is None else self.recorder.first(samples)
        with with_values(self.values(gain)):
            recorder.visit_spikes(self.layer, visit)

    def rate(self, gain: float) -> float:
        """Return the spikes a neuron and step with a gain."""
        if gain not in self._rates:
            counter = SpikeCounter()
            self.run(counter.add, gain, self.few)
            self._rates[gain] = counter.rate
        return self._rates[gain]

    def find_gain(self, rate: float) -> float | None:
        """Return the gain that gives a firing rate, by bisection of its logarithm; None if too few currents are positive."""
        low, high = _LOG2_GAINS
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.rate(2.0**middle) > rate else (middle, high)
        return 2.0**high if high < _LOG2_GAINS[1] else None

    def filtered(self, filters: Tensor, gain: float) -> FilteredSpikes:
        """Return the layer's spikes with a gain, weighted by filters (K, T); of many features in the net, some."""
        if self.currents is None:
            with with_values(self.values(gain)):
                return self.recorder.filter_spikes(self.layer, filters, _flatten_some)
        sums = SpikeSums(filters)
        _run_alone(self.layer.neuron, self.currents, gain, sums.add)
        return sums.finish()

    def follows(self, gain: float) -> bool:
        """Return whether the neuron's currents in the net are the ones kept times a gain.

        A normalisation, a skip connection or quantised weights prevent it.  Recurrent or stateful paths may change later steps;
        the first step depends on the scaled weights alone.
        """
        if self.currents is None:
            return True
        with with_values(self.values(gain)):
            found = self.recorder.first(1).record_currents(self.layer)[0]
        expected = self.currents[0, : len(found)] * gain
        scale = float(expected.abs().max())
        return bool(torch.allclose(found[: len(expected)], expected, rtol=1e-3, atol=1e-4 * scale + 1e-12))


def _run_alone(neuron: nn.Module, currents: Tensor, gain: float, visit: Callable[[Tensor], None]) -> None:
    """Run a neuron without its net on currents ``[T, n, *]`` times a gain."""
    still = len(currents) > 1 and currents.stride(0) == 0
    scaled = (currents[:1] * gain).expand_as(currents) if still else currents * gain
    library_of(neuron).each_step(neuron, scaled, lambda spikes, membrane: visit(spikes))


def _flatten_some(features: Tensor) -> Tensor:
    return take_some(features.flatten(1))


def along(excess: Tensor, values: Tensor, axis: int) -> Tensor:
    """Return the excess (C,) so that it broadcasts along an axis of values; the first one if the axis has another length."""
    if values.dim() <= axis or values.shape[axis] != len(excess):
        return excess[0].to(values)
    return excess.to(values).reshape(-1, *[1] * (values.dim() - axis - 1))


def make_driven_layer(task: HiddenTask, layer: HiddenLayer, samples: int = FEW_SAMPLES) -> DrivenLayer:
    """Return a layer that runs alone on its currents, or in the net if the neuron needs that or the currents are large."""
    in_net = DrivenLayer(task.recorder.first(samples), layer, FEW_SAMPLES)
    if layer.synapse is layer.neuron or layer.library.recurrence(layer.neuron) is not None:
        return in_net
    try:
        currents = in_net.recorder.record_currents(layer, most=CURRENT_BYTES)
        alone = replace(in_net, currents=currents)
        spikes = alone.rate(1.0) > 0
    except UnsupportedModuleError:
        return in_net
    if not spikes and not bool((currents > 0).any()):
        found = f"hidden layer {layer.name!r} receives no positive current, so that no gain makes it spike"
        fix = "check the inputs' sign and scale, or the layer's bias"
        raise SilentLayerError(found, "a current above zero for some sample and step", fix)
    return alone


# -- parameters of a layer -----------------------------------------------------------------------------------------------------


def scale_parameters(layer: HiddenLayer, gain: float) -> Values:
    """Return a layer's input weights and bias times ``gain``; a gain of recurrent weights would change the dynamics."""
    return {
        (module, name): getattr(module, name).detach() * gain
        for module, name in layer.weights.parameters
        if can_replace(module, name)
    }


def explain_fixed(layer: HiddenLayer, layers: Sequence[HiddenLayer] = ()) -> str:
    """Return the reason why the layer's weight and bias can't be written; empty if they can.

    If one of them is frozen, the layer stays as it is: a gain of the other one would change what the neurons compute.
    ``layers`` are all hidden layers of the net, since several may share a synapse or a neuron.
    """
    for other in layers:
        if other is not layer and (other.synapse is layer.synapse or other.neuron is layer.neuron):
            part = "synapse" if other.synapse is layer.synapse else "neuron"
            pairs = " and ".join(f"{one.name!r} with {one.neuron_name!r}" for one in (layer, other))
            return f"the same {part} serves two layers: {pairs}"
    if not layer.weights.parameters:
        return f"a {type(layer.weights.module).__name__} without a weight of its own"
    return explain_fixed_parameters(layer.weights.parameters)


def explain_fixed_parameters(parameters: Sequence[tuple[nn.Module, str]], part: str = "") -> str:
    """Return the reason why parameters, each a module and a name, can't be written; empty if they can.

    ``part`` is the part of the layer that they belong to, in the genitive.
    """
    frozen = [part + name for module, name in parameters if is_frozen(module, name)]
    if frozen:
        return f"frozen: requires_grad=False of its {' and its '.join(frozen)}"
    for module, name in parameters:
        if not can_replace(module, name):
            return f"its {part}{name} is computed by {find_computation(module, name)}"
    return ""
