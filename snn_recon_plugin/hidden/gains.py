"""Gains of hidden layers: each layer keeps its weights and bias up to one factor, chosen from the input up.

A gain does not change the pattern of a threshold unit (arXiv 2605.08022, section 3), but it changes a leaky neuron's firing rate.
Gains of a few rates are tried, and the held-out loss of a temporary ridge readout decides, also between a layer's own weights
times a gain and its rebuilt rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks.calls.calls import CallRecorder, FilteredSpikes, SpikeCounter
from ..networks.capture import ActivityRecorder
from ..networks.libraries import library_of
from ..networks.private.parameters import Values, can_replace, find_computation, is_frozen, with_values
from ..networks.structure.layers import HiddenLayer
from .hidden_task import FEW_SAMPLES, RIDGES, HiddenTask, LayerGain, check_samples, take_some
from .simulate import SimulatedLayer, run_layer

CURRENT_BYTES = 2**29  # currents of a layer at all steps that are kept at most
_LOG2_GAINS = (-10.0, 12.0)  # range of the search; silent convolutional nets need 3 to 6, Norse nets about 20
_HALVINGS, _NEAR = 12, 0.05  # steps of the search, and the relative difference of a rate that ends it
RATES = (0.01, 0.03, 0.06, 0.12, 0.25)  # spikes a neuron and step; the best one differs between layers
RATE_ABOVE = 0.12  # firing rate of the layers above: high enough to relay their inputs
TIE_LOSS_RATIO = 1.03  # ratio of held-out losses within which they tie: a few hundred samples resolve no less
FIRST_SAMPLES = 1000  # samples on which all gains are compared; ties are compared on all samples
_COMPARED_RATES = (RATE_ABOVE,), tuple(rate for rate in RATES if rate != RATE_ABOVE)  # tried one after the other
TRIED_LOSS_RATIO = 1.15  # ratio of the loss of some weights to a rebuilt layer's above which no more is tried with them


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
            found = self.rate(2.0**middle)
            if rate > 0 and abs(found - rate) <= _NEAR * rate:
                return float(2.0**middle)
            low, high = (low, middle) if found > rate else (middle, high)
        return 2.0**high if high < _LOG2_GAINS[1] else None

    def filtered(self, filters: Tensor, gain: float) -> FilteredSpikes:
        """Return the layer's spikes with a gain, weighted by filters (K, T); of many features in the net, some."""
        if self.currents is None:
            with with_values(self.values(gain)):
                return self.recorder.filter_spikes(self.layer, filters, lambda features: take_some(features.flatten(1)))
        counter = SpikeCounter(filters)
        _run_alone(self.layer.neuron, self.currents, gain, counter.add)
        return counter.filtered()

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


# -- the choice of a gain -------------------------------------------------------------------------------------------------------


def choose_gain(task: HiddenTask, number: int) -> tuple[LayerGain, Values]:
    """Return the gain of one layer, and the values to write; the layers below have theirs.  Refuse a layer that never spikes."""
    layer, steps = task.net_map.hidden[number], task.temporary.num_steps
    fixed = explain_fixed(layer, task.net_map.hidden)
    if fixed:
        return LayerGain(layer.name, reason=fixed), {}
    driven = make_driven_layer(task, layer, FIRST_SAMPLES)
    unscaled = driven.filtered(task.temporary.filters, 1.0)
    if unscaled.steps != steps:
        reason = f"its neuron runs {unscaled.steps} times in {steps} steps, as one that serves several layers"
        return LayerGain(layer.name, reason=reason), {}
    count = driven.recorder.batches[-1].rows.stop
    check_samples(layer, len(unscaled.features) // task.temporary.rows_each, len(task.targets[:count]))
    gains = [gain for rate in RATES if (gain := driven.find_gain(rate)) is not None]
    if not gains and not bool(unscaled.rate.any()):
        raise SilentLayerError(
            f"hidden layer {layer.name!r} does not spike at any gain of its weights",
            "spikes of at least some of its neurons",
            "check that its inputs are not all zero, as behind a silent encoder, then their scale, the sign of its weights and "
            "the thresholds",
        )
    best, losses = _choose_best(task, number, driven, unscaled, gains)
    if best == 1.0 or driven.follows(best):
        return LayerGain(layer.name, best, heldout_loss=losses), driven.values(best)
    reason = "its currents do not scale with its weights, as with a normalisation after them, or quantised or binarised weights"
    return LayerGain(layer.name, reason=reason), {}


def _choose_best(
    task: HiddenTask, number: int, driven: DrivenLayer, unscaled: FilteredSpikes, gains: Sequence[float]
) -> tuple[float, dict[float, float]]:
    """Return the best gain, 1 among them, and the held-out loss of each; other gains that tie are compared on all samples.

    The last layer is evaluated on its spikes, the others at the net's readout.
    """
    above, filters = task.net_map.hidden[number + 1 :], task.temporary.filters
    validation = task.cross_validate(driven.recorder.batches[-1].rows.stop)
    if above:
        losses = {gain: _evaluate_net(task, above, driven.values(gain), driven.recorder) for gain in (1.0, *gains)}
    else:
        losses = {1.0: validation.evaluate_rows(unscaled.features)[0]}
        losses |= {gain: validation.evaluate_rows(driven.filtered(filters, gain).features)[0] for gain in gains}
    tied = _find_ties(losses, validation.evaluate_nothing())
    if 1.0 not in tied and len(tied) > 1 and len(task.recorder.batches) > len(driven.recorder.batches):
        losses |= {gain: _evaluate_net(task, above, driven.values(gain), task.recorder) for gain in tied}
        tied = [min(tied, key=lambda gain: losses[gain])]
    return _settle_ties(tied, driven.rate), losses


def settle_gain(driven: DrivenLayer, losses: dict[float, float], nothing: float, reason: str = "") -> tuple[LayerGain, Values]:
    """Return the gain to take by the held-out losses of some, and of a bias alone, and the values to write."""
    best = _settle_ties(_find_ties(losses, nothing), driven.rate)
    return LayerGain(driven.layer.name, best, heldout_loss=losses, reason=reason), driven.values(best)


def _find_ties(losses: dict[float, float], nothing: float) -> list[float]:
    """Return the gains whose held-out loss ties with the least; ``nothing`` is a bias alone.  None if all are infinite."""
    least = min(losses.values())
    margin = (TIE_LOSS_RATIO - 1) * min(least, max(nothing - least, 0.0))
    return [gain for gain, value in losses.items() if value - least <= margin]


def _settle_ties(tied: Sequence[float], rate: Callable[[float], float]) -> float:
    """Return the layer's own gain if it ties, else the gain of the middle firing rate, the farthest from rates that do worse."""
    return 1.0 if not tied or 1.0 in tied else sorted(tied, key=rate)[len(tied) // 2]


def _evaluate_net(task: HiddenTask, above: Sequence[HiddenLayer], values: Values, recorder: CallRecorder) -> float:
    """Return the held-out loss at the net's readout with some values, while the layers above fire at a fixed rate."""
    activity, parts = ActivityRecorder(task.net_map, task.readout), []
    with ExitStack() as stack:
        stack.enter_context(with_values(values))
        for layer in above:
            try:
                scaled = make_driven_layer(task, layer)
            except SilentLayerError:
                return math.inf
            gain = None if explain_fixed(layer, task.net_map.hidden) else scaled.find_gain(RATE_ABOVE)
            if gain is not None:
                stack.enter_context(with_values(scaled.values(gain)))
        for batch in recorder.batches:
            _, features = activity.run(recorder.net, batch, recorder.forward)
            parts.append(features[: batch.size].clone())
    return task.cross_validate(recorder.batches[-1].rows.stop).evaluate_features(torch.cat(parts))


def choose_own(task: HiddenTask, number: int, compared: SimulatedLayer | None, rebuilt: Values) -> tuple[LayerGain, Values] | None:
    """Return a layer's own weights times a gain unless the rebuilt layer is better; a tie keeps them, without a gain if that ties.

    ``compared`` is the layer on the samples that compare, see :func:`measure_losses`.  Firing rates but one are tried only if the
    first trials come near.
    """
    layer = task.net_map.hidden[number]
    try:
        driven = make_driven_layer(task, layer)
    except SilentLayerError:
        return None
    with with_values(rebuilt):
        ((other, ridge),) = measure_losses(task, layer, (1.0,), compared=compared)
    losses: dict[float, float] = {}
    for rates in _COMPARED_RATES:
        gains = [*([] if losses else [1.0]), *(gain for rate in rates if (gain := driven.find_gain(rate)) is not None)]
        found = measure_losses(task, layer, gains, compared=compared, ridges=(ridge,))
        losses |= {gain: loss for gain, (loss, _) in zip(gains, found, strict=True)}
        if min(losses.values()) > TRIED_LOSS_RATIO * other:
            return None
    own, values = settle_gain(driven, losses, task.comparison.evaluate_nothing())
    if TIE_LOSS_RATIO * other < losses[own.gain]:
        return None
    reason = f"no worse than selected candidates on held-out samples, loss {losses[own.gain]:.3g} against {other:.3g}"
    return replace(own, reason=reason), values


def measure_losses(
    task: HiddenTask,
    layer: HiddenLayer,
    gains: Sequence[float],
    *,
    compared: SimulatedLayer | None = None,
    ridges: tuple[float, ...] = RIDGES,
) -> list[tuple[float, float]]:
    """Return held-out loss and best ridge of a layer with each of some gains, ``compared`` alone or in the net."""
    driven = DrivenLayer(task.recorder, layer)
    if compared is not None and (compared.scales or tuple(gains) == (1.0,)):
        driven = replace(driven, currents=compared.own_currents())
    losses = []
    for gain in gains:
        if driven.currents is not None:
            features = driven.filtered(task.temporary.filters, gain).features
        else:
            with with_values(driven.values(gain)):
                features = run_layer(task.recorder, layer, task.temporary).features
            features = features[task.temporary.find_rows(task.compared_samples[0].to(features.device))]
        losses.append(task.comparison.evaluate_rows(features, ridges))
    return losses
