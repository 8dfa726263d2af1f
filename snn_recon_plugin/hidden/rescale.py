"""Gains of hidden layers: each layer keeps its weights and bias up to one factor, chosen from the input up.

A gain does not change the pattern of a threshold unit (arXiv 2605.08022, section 3), but it changes a leaky neuron's firing rate.
Gains of a few rates are tried, and the held-out loss of a temporary ridge readout decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks.calls.activity import ActivityRecorder
from ..networks.calls.record import StoredBatch, first_batches
from ..networks.capture import neuron_currents
from ..networks.libraries import library_of
from ..networks.private.parameters import Values, can_replace, find_computation, is_frozen, with_values
from ..networks.structure.layers import HiddenLayer
from .decisions import LayerGain
from .filtered_spikes import FilteredSpikes, SpikeSums, record_filtered, visit_spikes
from .hidden_task import FEW_SAMPLES, HiddenTask, check_samples, take_some

RATES = (0.01, 0.03, 0.06, 0.12, 0.25)  # spikes a neuron and step; the best one differs between layers
RATE_ABOVE = 0.12  # firing rate of the layers above: high enough to relay their inputs
# Ratio of held-out losses within which they tie: a few hundred samples resolve no less; see docs/evidence/decisions.md.
TIE_LOSS_RATIO = 1.03
FIRST_SAMPLES = 1000  # samples on which all gains are compared; ties are compared on all samples
_LOG2_GAINS = (-10.0, 12.0)  # range of the search; silent convolutional nets need 3 to 6, Norse nets about 20
_HALVINGS = 12
_CURRENT_BYTES = 2**29  # currents of a layer at all steps that are kept at most


def choose_gain(task: HiddenTask, number: int) -> tuple[LayerGain, Values]:
    """Return the gain of one layer, and the values to write; the layers below have their new values.

    Raises:
        SilentLayerError: the layer does not spike at any gain.
    """
    layer, steps = task.net_map.hidden[number], task.temporary.num_steps
    fixed = explain_fixed(layer, task.net_map.hidden)
    if fixed:
        return LayerGain(layer.name, reason=fixed), {}
    scaled = make_scaled_layer(task, layer, FIRST_SAMPLES)
    unscaled = scaled.emit(1.0)
    if unscaled.steps != steps:
        reason = f"its neuron runs {unscaled.steps} times in {steps} steps, as one that serves several layers"
        return LayerGain(layer.name, reason=reason), {}
    check_samples(layer, unscaled.shape[0], len(task.targets[: scaled.batches[-1].rows.stop]))
    gains = [gain for rate in RATES if (gain := find_gain(scaled, rate)) is not None]
    if not gains and not bool(unscaled.rate.any()):
        raise SilentLayerError(
            f"hidden layer {layer.name!r} does not spike at any gain of its weights",
            "spikes of at least some of its neurons",
            "check that its inputs are not all zero, as behind a silent encoder, then their scale, the sign of its weights and "
            "the thresholds",
        )
    best, losses = _choose_best(task, number, scaled, [1.0, *gains])
    if best == 1.0:
        return LayerGain(layer.name, heldout_loss=losses), {}
    if scaled.confirms(best):
        return LayerGain(layer.name, best, heldout_loss=losses), scale_parameters(layer, best)
    reason = "its currents do not scale with its weights, as with a normalisation after them, or quantised or binarised weights"
    return LayerGain(layer.name, reason=reason), {}


class Scalable(Protocol):
    """Layer with a gain."""

    def rate(self, gain: float) -> float:
        """Return the spikes a neuron and step with a gain."""


def find_gain(scaled: Scalable, rate: float) -> float | None:
    """Return the gain that gives a firing rate, by bisection of its logarithm; None if too few currents are positive."""
    low, high = _LOG2_GAINS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if scaled.rate(2.0**middle) > rate else (middle, high)
    return 2.0**high if high < _LOG2_GAINS[1] else None


def _choose_best(task: HiddenTask, number: int, scaled: ScaledLayer, gains: Sequence[float]) -> tuple[float, dict[float, float]]:
    """Return the best gain and the held-out loss of each; gains other than 1 that tie are compared on all samples.

    The last layer is evaluated on its spikes, the others at the net's readout.
    """
    layer, above = scaled.layer, task.net_map.hidden[number + 1 :]
    if above:
        losses = {gain: _evaluate_net(task, above, scale_parameters(layer, gain), scaled.batches) for gain in gains}
    else:
        validation = task.cross_validate(scaled.batches[-1].rows.stop)
        losses = {gain: validation.evaluate_rows(scaled.emit(gain).features)[0] for gain in gains}
    tied = _find_ties(losses)
    if 1.0 not in tied and len(tied) > 1 and len(task.batches) > len(scaled.batches):
        losses |= {gain: _evaluate_net(task, above, scale_parameters(layer, gain), task.batches) for gain in tied}
        tied = [min(tied, key=lambda gain: losses[gain])]
    return _settle_ties(tied, scaled.rate), losses


def settle_gain(scaled: ScaledLayer, losses: dict[float, float], reason: str = "") -> tuple[LayerGain, Values]:
    """Return the gain to take by the held-out losses of some, and the values to write."""
    best = _settle_ties(_find_ties(losses), scaled.rate)
    values = {} if best == 1.0 else scale_parameters(scaled.layer, best)
    return LayerGain(scaled.layer.name, best, heldout_loss=losses, reason=reason), values


def _find_ties(losses: dict[float, float]) -> list[float]:
    """Return the gains whose held-out loss ties with the least; none if all are infinite."""
    least = min(losses.values())
    return [gain for gain, value in losses.items() if value <= TIE_LOSS_RATIO * least and math.isfinite(value)]


def _settle_ties(tied: Sequence[float], rate: Callable[[float], float]) -> float:
    """Return the layer's own gain if it ties, else the gain of the middle firing rate, the denser of two.

    The middle rate is the farthest from rates that do worse.
    """
    return 1.0 if not tied or 1.0 in tied else sorted(tied, key=rate)[len(tied) // 2]


def _evaluate_net(task: HiddenTask, above: Sequence[HiddenLayer], values: Values, batches: Sequence[StoredBatch]) -> float:
    """Return the held-out loss at the net's readout with some values, while the layers above fire at a fixed rate."""
    recorder, parts = ActivityRecorder(task.net_map, task.readout.averaged), []
    with ExitStack() as stack:
        stack.enter_context(with_values(values))
        for layer in above:
            try:
                scaled = make_scaled_layer(task, layer)
            except SilentLayerError:
                return math.inf
            gain = None if explain_fixed(layer, task.net_map.hidden) else find_gain(scaled, RATE_ABOVE)
            if gain is not None:
                stack.enter_context(with_values(scale_parameters(layer, gain)))
        for number, batch in enumerate(batches, start=1):
            recorder.run(task.net, batch, task.forward)
            parts.append(recorder.finish(number)[: batch.size].clone())
    return task.cross_validate(batches[-1].rows.stop).evaluate_features(torch.cat(parts))


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
    shared = explain_shared(layer, layers)
    if shared:
        return shared
    parameters = layer.weights.parameters
    if not parameters:
        return f"a {type(layer.weights.module).__name__} without a weight of its own"
    return explain_fixed_parameters(parameters)


def explain_shared(layer: HiddenLayer, layers: Sequence[HiddenLayer]) -> str:
    """Return which other layer has the same synapse or neuron; empty for none."""
    for other in layers:
        if other is not layer and (other.synapse is layer.synapse or other.neuron is layer.neuron):
            part = "synapse" if other.synapse is layer.synapse else "neuron"
            pairs = " and ".join(f"{one.name!r} with {one.neuron_name!r}" for one in (layer, other))
            return f"the same {part} serves two layers: {pairs}"
    return ""


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


@dataclass(frozen=True)
class ScaledLayer:
    """A hidden layer with a gain, on the samples of some batches."""

    task: HiddenTask
    layer: HiddenLayer
    batches: Sequence[StoredBatch]
    currents: Tensor | None = None  # ``[T, n, *]``, on which the neuron is simulated alone; None runs it in the net
    _rates: dict[float, float] = field(default_factory=dict)  # by gain: searches for several rates try the same ones

    @cached_property
    def _unscaled(self) -> FilteredSpikes:
        return self._run(1.0)

    def emit(self, gain: float) -> FilteredSpikes:
        """Return the layer's spikes with a gain."""
        return self._unscaled if gain == 1.0 else self._run(gain)

    def rate(self, gain: float) -> float:
        """Return the spikes a neuron and step with a gain, on some of the samples."""
        if gain not in self._rates:
            sums, observed = list[Tensor](), 0

            def add(spikes: Tensor) -> None:
                nonlocal observed
                sums.append(spikes.sum(dtype=torch.float64))
                observed += spikes.numel()

            if self.currents is None:
                with self._trying(gain):
                    for batch in first_batches(self.batches, FEW_SAMPLES):
                        visit_spikes(self.task, self.layer, batch, add)
            else:
                self._simulate(gain, self.currents[:, :FEW_SAMPLES], add)
            self._rates[gain] = float(torch.stack(sums).sum()) / max(1, observed)
        return self._rates[gain]

    def confirms(self, gain: float) -> bool:
        """Return whether the neuron's current scales with the parameters; a normalisation in between prevents it."""
        if self.currents is None:
            return True  # the net itself was run
        with self._trying(gain):
            scaled = neuron_currents(self.task.net, self.batches[:1], self.layer, self.task.forward)
        # Recurrent or stateful paths may change later steps; the first step depends on the scaled weights alone.
        expected = self.currents[0, : scaled.shape[1]] * gain
        return bool(torch.allclose(scaled[0], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-12))

    def _run(self, gain: float) -> FilteredSpikes:
        if self.currents is None:
            with self._trying(gain):
                return record_filtered(self.task, self.layer, self.batches, lambda features: take_some(features.flatten(1)))
        sums = SpikeSums(self.task.temporary.filters)
        self._simulate(gain, self.currents, sums.add)
        return sums.finish()

    def _trying(self, gain: float) -> AbstractContextManager[None]:
        return with_values({} if gain == 1.0 else scale_parameters(self.layer, gain))

    def _simulate(self, gain: float, currents: Tensor, visit: Callable[[Tensor], None]) -> None:
        """Run the neuron alone, and call ``visit`` with the spikes of each step."""
        still = len(currents) > 1 and currents.stride(0) == 0
        scaled = (currents[:1] * gain).expand_as(currents) if still else currents * gain
        library_of(self.layer.neuron).each_step(self.layer.neuron, scaled, lambda spikes, membrane: visit(spikes))


def make_scaled_layer(task: HiddenTask, layer: HiddenLayer, samples: int = FEW_SAMPLES) -> ScaledLayer:
    """Return the cheapest simulation that the layer's neuron allows; SilentLayerError if no current is positive.

    A neuron that can be simulated alone runs on the layer's currents times the gain.  One with input weights or recurrence,
    or whose currents would take much memory, runs in the net with multiplied parameters.
    """
    in_net = ScaledLayer(task, layer, first_batches(task.batches, samples))
    if layer.synapse is layer.neuron or library_of(layer.neuron).recurrence(layer.neuron) is not None:
        return in_net
    try:
        currents = neuron_currents(task.net, in_net.batches, layer, task.forward, most=_CURRENT_BYTES)
        alone = ScaledLayer(task, layer, in_net.batches, currents)
        spikes = bool(alone.emit(1.0).rate.any())
    except UnsupportedModuleError:
        return in_net
    if not bool((currents > 0).any()) and not spikes:
        raise SilentLayerError(
            f"hidden layer {layer.name!r} receives no positive current, so that no gain makes it spike",
            "a current above zero for some sample and step",
            "check the inputs' sign and scale, or the layer's bias",
        )
    return alone
