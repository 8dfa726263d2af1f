"""Gains of hidden layers: each layer keeps its weights and bias up to one factor.

A gain does not change the pattern of a threshold unit (arXiv 2605.08022, section 3), but it changes a leaky neuron's firing rate.
Layers that are silent or always on carry no information.  From the input up, each layer tries its own weights and the gains of
a few firing rates.  The held-out loss of a temporary ridge readout decides.  The last layer is evaluated on its filtered spikes.
Earlier layers are evaluated at the net's readout, while the layers above fire at a fixed rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError, SilentLayerError
from ..networks import ActivityRecorder, HiddenLayer, StoredBatch, replace_parameters
from .hidden_task import HiddenTask, LayerGain, ParameterValues
from .scaled_layer import (
    ScaledLayer,
    can_scale,
    explain_fixed,
    make_scaled_layer,
    scale_parameters,
    take_first_batches,
)

__all__ = ["TIE", "choose_gain", "choose_gains", "evaluate_at_rate"]

RATES = (0.01, 0.03, 0.06, 0.12, 0.25)  # spikes a neuron and step; the best one differs between layers
TIE = 1.03  # ratio of held-out losses within which they tie: a few hundred samples resolve no less; see docs/decisions.md
_RATE_ABOVE = 0.12  # firing rate of the layers above: high enough to relay their inputs
_FIRST_SAMPLES = 1000  # samples on which all gains are compared; ties are compared on all samples
_LOG2_GAINS = (-10.0, 12.0)  # range of the search; silent convolutional nets need 3 to 6, Norse nets about 20
_HALVINGS = 12


def choose_gains(task: HiddenTask) -> list[LayerGain]:
    """Choose a gain for every hidden layer, from the input up, given the gains below.

    Returns:
        One outcome a layer, in order of execution.

    Raises:
        SilentLayerError: no gain makes a layer spike.
    """
    values: ParameterValues = {}
    outcomes = []
    for number, layer in enumerate(task.net_map.hidden):
        outcome = choose_gain(task, number, values)
        if outcome.gain != 1.0:
            values.update(scale_parameters(layer, outcome.gain))
        outcomes.append(outcome)
    return outcomes


def choose_gain(task: HiddenTask, number: int, below: ParameterValues) -> LayerGain:
    """Choose the gain of one layer, given new values of the layers below."""
    layer, steps = task.net_map.hidden[number], task.net_map.num_steps
    fixed = explain_fixed(layer, task.net_map.hidden)
    if fixed:
        return LayerGain(layer.name, 1.0, math.nan, math.nan, {}, fixed)
    with replace_parameters(below):
        first = take_first_batches(task.batches, _FIRST_SAMPLES)
        scaled = make_scaled_layer(task.net, first, layer, task.forward)
        unscaled = scaled.spikes(1.0)
        if len(unscaled) != steps:
            reason = f"its neuron runs {len(unscaled)} times in {steps} steps, as one that serves several layers"
            return LayerGain(layer.name, 1.0, math.nan, math.nan, {}, reason)
        _check_samples(unscaled, task.targets[: first[-1].rows.stop])
        rates = _find_gains(layer, scaled, unscaled)
        best, losses = _choose_best(task, number, scaled, rates)
        before = float(unscaled.float().mean())
        if best == 1.0:
            return LayerGain(layer.name, 1.0, before, before, losses)
        if scaled.confirms(best):
            return LayerGain(layer.name, best, before, float(scaled.spikes(best).float().mean()), losses)
    reason = "its currents do not scale with its weights, as with a normalisation after them, or quantised or binarised weights"
    return LayerGain(layer.name, 1.0, before, before, {}, reason)


def _find_gains(layer: HiddenLayer, scaled: ScaledLayer, unscaled: Tensor) -> dict[float, float]:
    """Return the gains to compare with their firing rates: 1 and one for each rate; refuse a layer that never spikes."""
    gains = [gain for rate in RATES if (gain := _find_gain(scaled, rate)) is not None]
    if not gains and not bool(unscaled.any()):
        raise SilentLayerError(
            f"hidden layer {layer.name!r} does not spike at any gain of its weights",
            "spikes of at least some of its neurons",
            "check the sign of its weights, the inputs' scale and the thresholds",
        )
    return {gain: scaled.rate(gain) for gain in (1.0, *gains)}


def _choose_best(task: HiddenTask, number: int, scaled: ScaledLayer, rates: dict[float, float]) -> tuple[float, dict[float, float]]:
    """Return the best gain and the held-out loss of each; gains other than 1 that tie are compared on all samples."""
    layer, above = task.net_map.hidden[number], task.net_map.hidden[number + 1 :]
    losses = {gain: _evaluate(task, number, scaled, gain) for gain in rates}
    tied = _find_ties(losses)
    more_batches = len(task.batches) > len(take_first_batches(task.batches, _FIRST_SAMPLES))
    if 1.0 not in tied and len(tied) > 1 and more_batches:
        losses |= {gain: _evaluate_net(task, above, scale_parameters(layer, gain), task.batches) for gain in tied}
        tied = [min(tied, key=lambda gain: losses[gain])]
    return _settle_ties(tied, rates), losses


def evaluate_at_rate(task: HiddenTask, number: int, values: ParameterValues, rate: float) -> tuple[float, float]:
    """Return the gain at which a layer fires at ``rate`` and the held-out loss there; 1 and infinity if no gain does.

    Args:
        task: the task.
        number: the layer.
        values: new values of the layer and those below.
        rate: spikes a neuron and step.
    """
    with replace_parameters(values):
        try:
            first = take_first_batches(task.batches, _FIRST_SAMPLES)
            scaled = make_scaled_layer(task.net, first, task.net_map.hidden[number], task.forward)
        except SilentLayerError:
            return 1.0, math.inf
        gain = _find_gain(scaled, rate)
        return (1.0, math.inf) if gain is None else (gain, _evaluate(task, number, scaled, gain))


def _evaluate(task: HiddenTask, number: int, scaled: ScaledLayer, gain: float) -> float:
    """Return the held-out loss of a layer with a gain: at the net's readout, or for the last layer on its spikes."""
    above, first = task.net_map.hidden[number + 1 :], take_first_batches(task.batches, _FIRST_SAMPLES)
    if not above:
        return task.cross_validate(first[-1].rows.stop).evaluate_spikes(scaled.spikes(gain))
    return _evaluate_net(task, above, scale_parameters(task.net_map.hidden[number], gain), first)


def _evaluate_net(task: HiddenTask, above: Sequence[HiddenLayer], values: ParameterValues, batches: Sequence[StoredBatch]) -> float:
    """Return the held-out loss at the net's readout with some values, while the layers above fire at a fixed rate."""
    for layer in above:
        with replace_parameters(values):
            try:
                scaled = make_scaled_layer(task.net, take_first_batches(task.batches), layer, task.forward)
            except SilentLayerError:
                return torch.inf
            gain = _find_gain(scaled, _RATE_ABOVE) if can_scale(layer, task.net_map.hidden) else None
        if gain is not None:
            values = {**values, **scale_parameters(layer, gain)}
    recorder, parts = ActivityRecorder(task.net_map, task.readout.averaged), []
    with replace_parameters(values):
        for number, batch in enumerate(batches, start=1):
            recorder.run(task.net, batch, task.forward)
            parts.append(recorder.finish(number)[: batch.size].clone())
    return task.cross_validate(batches[-1].rows.stop).evaluate_features(torch.cat(parts))


def _check_samples(spikes: Tensor, targets: Tensor) -> None:
    if spikes.shape[1] != len(targets):
        raise DataError(
            f"{len(targets)} targets for {spikes.shape[1]} samples that reach a hidden layer",
            "one target for every sample",
            "check the loader's targets, and that the batch is the axis after time",
        )


def _find_ties(losses: dict[float, float]) -> list[float]:
    """Return the gains whose held-out loss ties with the least; none if all are infinite."""
    least = min(losses.values())
    return [gain for gain, value in losses.items() if value <= TIE * least and math.isfinite(value)]


def _settle_ties(tied: list[float], rates: dict[float, float]) -> float:
    """Return the layer's own gain if it ties, else the gain of the middle firing rate, the denser of two.

    The middle rate is the farthest from rates that do worse.
    """
    if not tied or 1.0 in tied:
        return 1.0
    return sorted(tied, key=lambda gain: rates[gain])[len(tied) // 2]


def _find_gain(scaled: ScaledLayer, rate: float) -> float | None:
    """Return the gain that gives a firing rate, by bisection of its logarithm; None if too few currents are positive."""
    low, high = _LOG2_GAINS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if scaled.rate(2.0**middle) > rate else (middle, high)
    return 2.0**high if high < _LOG2_GAINS[1] else None
