"""Drive of hidden layers, without labels: a gain and offsets with which the currents' fluctuations make neurons spike.

A layer's bias is dropped, and a unit whose mean current lies further from zero than its standard deviation is shifted to there:
so what differs between samples makes it spike.  The gain then gives a firing rate.  After Rossbroich, Gygax and Zenke (2022), who
derive gains for Poisson inputs; here the fluctuations are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks.calls.forward import Forward
from ..networks.calls.record import StoredBatch, Taps, first_batches, record
from ..networks.capture import neuron_currents
from ..networks.libraries import library_of
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from ..networks.write import Transaction
from .decisions import LayerGain
from .norms import has_statistics, measure_statistics
from .rescale import explain_fixed, find_gain

RATE = 0.05  # spikes a neuron and step; at twice as many nine convolutions learned nothing: see docs/evidence/decisions.md
_CURRENT_BYTES = 2**29  # currents of a layer at all steps that are kept at most
_SIMULATED = 2**18  # currents, at all steps, on which the rate of a gain is measured
_FEWEST = 16  # samples of these at least
_CONSTANT = 1e-6  # spread of the currents over samples, relative to their size, that is rounding alone


@dataclass(frozen=True)
class DriveTask:
    """Private net, its first samples, and its hidden layers from the input up."""

    net: nn.Module
    batches: Sequence[StoredBatch]
    forward: Forward
    layers: Sequence[HiddenLayer]


def choose_drive(task: DriveTask, number: int, rate: float = RATE) -> tuple[LayerGain, Values]:
    """Return gain and offset with which one layer fires at a rate, and the values to write; the layers below have theirs.

    Raises:
        SilentLayerError: the layer gets the same current for every sample.
    """
    layer = task.layers[number]
    parameters, norm = layer.weights.parameters, layer.norm
    reason = explain_fixed(layer, task.layers) or _explain_unwritable(task, parameters)
    if reason:
        return LayerGain(layer.name, reason=reason), {}
    kept = [norm] if norm is not None and has_statistics(norm) else []
    running = measure_statistics(task.net, task.batches, task.forward, kept)
    with with_values(running):
        scaled = _measure_layer(task, layer, parameters)
        gain = find_gain(scaled, rate)
        if gain is None:
            return LayerGain(layer.name, reason="no gain gives that firing rate: too few of its currents are positive"), {}
        offset = 0.0 if scaled.excess is None else -gain * float(scaled.excess.mean())
        return LayerGain(layer.name, gain, offset), {**running, **scaled.values(gain)}


@dataclass(frozen=True)
class _OffsetLayer:
    """A hidden layer with a gain, and currents without their excess."""

    task: DriveTask
    layer: HiddenLayer
    parameters: Sequence[tuple[nn.Module, str]]  # weight and bias that are multiplied
    excess: Tensor | None  # of the currents, for each entry of the bias; None without one
    alone: LoneNeuron | None = None  # on currents without excess; None runs the neuron in the net

    def values(self, gain: float) -> Values:
        """Return the parameters with a gain."""
        found = {(module, name): getattr(module, name).detach() * gain for module, name in self.parameters}
        if self.excess is not None:
            place = _bias_of(self.parameters)
            assert place is not None
            found[place] = found[place] - gain * _along(self.excess, found[place], axis=0)
        return found

    def rate(self, gain: float) -> float:
        """Return the spikes a neuron and step with a gain."""
        if self.alone is not None:
            return self.alone.rate(gain)
        counts, library = _Counts(), library_of(self.layer.neuron)
        taps = Taps(outputs={self.layer.neuron: lambda output: counts.add(library.spikes(output))})
        with with_values(self.values(gain)):
            for batch in first_batches(self.task.batches, _FEWEST):
                record(self.task.net, batch, self.task.forward, taps)
        return counts.rate


@dataclass(frozen=True)
class LoneNeuron:
    """A neuron without its net, on currents ``[T, n, *]`` times a gain."""

    neuron: nn.Module
    currents: Tensor

    def rate(self, gain: float) -> float:
        """Return the spikes a neuron and step with a gain; an UnsupportedModuleError for one that can't run alone."""
        counts = _Counts()
        library_of(self.neuron).each_step(self.neuron, self.currents * gain, lambda spikes, membrane: counts.add(spikes))
        return counts.rate


class _Counts:
    """Running counts of spikes, and of the neurons and steps that could have spiked."""

    def __init__(self) -> None:
        self._spikes: list[Tensor] = []
        self._observed = 0

    def add(self, spikes: Tensor) -> None:
        self._spikes.append(spikes.sum(dtype=torch.float64))
        self._observed += spikes.numel()

    @property
    def rate(self) -> float:
        return float(torch.stack(self._spikes).sum()) / self._observed


def _measure_layer(task: DriveTask, layer: HiddenLayer, parameters: Sequence[tuple[nn.Module, str]]) -> _OffsetLayer:
    """Measure the excess of a layer's currents; its neuron runs alone where that gives what it does in the net."""
    if layer.synapse is layer.neuron:
        return _OffsetLayer(task, layer, parameters, None)
    try:
        currents = neuron_currents(task.net, task.batches, layer, task.forward, most=_CURRENT_BYTES)
    except UnsupportedModuleError:
        return _OffsetLayer(task, layer, parameters, None)
    _refuse_constant(layer, currents)
    bias = _bias_of(parameters)
    excess = None if bias is None else _excess(currents, getattr(*bias))
    in_net = _OffsetLayer(task, layer, parameters, excess)
    few = take_few(currents)
    lone = LoneNeuron(layer.neuron, few if excess is None else few - _along(excess, few, axis=2))
    alone = _OffsetLayer(task, layer, parameters, excess, lone)
    try:
        alone.rate(1.0)
    except UnsupportedModuleError:
        return in_net
    return alone if _follows(alone, lone.currents) else in_net


def take_few(currents: Tensor) -> Tensor:
    """Return the currents ``[T, n, *]`` of as many of the first samples as give a rate."""
    return currents[:, : max(_FEWEST, _SIMULATED * currents.shape[1] // currents.numel())]


def _refuse_constant(layer: HiddenLayer, currents: Tensor) -> None:
    """Refuse a layer whose currents are the same for all samples: its spikes could say nothing about them."""
    if bool(((currents - currents[:, :1]).abs() > _CONSTANT * currents.abs().max()).any()):
        return
    raise SilentLayerError(
        f"hidden layer {layer.name!r} gets the same current for every sample",
        "currents that differ between samples",
        "check that the inputs are not all zero, as behind a silent encoder, and that no frozen layer below it is silent",
    )


def _excess(currents: Tensor, bias: Tensor) -> Tensor:
    """Return what to take from the currents ``[T, n, C, *]``, (C,): a layer's bias, and each unit's drift beyond its fluctuations.

    The drift is the mean over samples and steps without the bias, the fluctuations a standard deviation.  Of a bias for other units
    than those of axis 2, all units have the same.
    """
    by_unit = currents.dim() > 2 and currents.shape[2] == len(bias)
    axes = [axis for axis in range(currents.dim()) if axis != 2 or not by_unit]
    own = bias.detach().reshape(len(bias), -1).mean(1)
    own = own if by_unit else own.mean()
    drift, spread = currents.mean(axes) - own, currents.std(axes)
    return (own + drift - drift.clamp(-spread, spread)).expand(len(bias))


def _along(excess: Tensor, values: Tensor, axis: int) -> Tensor:
    """Return the excess (C,) so that it broadcasts along an axis of values; the first one if the axis has another length."""
    if values.dim() <= axis or values.shape[axis] != len(excess):
        return excess[0].to(values)
    return excess.to(values).reshape(-1, *[1] * (values.dim() - axis - 1))


def _follows(alone: _OffsetLayer, currents: Tensor) -> bool:
    """Return whether the currents in the net follow gain and offset; a skip connection or quantised weights prevent it."""
    task, layer = alone.task, alone.layer
    with with_values(alone.values(2.0)):
        found = neuron_currents(task.net, task.batches[:1], layer, task.forward)[0, :_FEWEST]
    expected = 2 * currents[0, : len(found)]
    return bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-12))


def _explain_unwritable(task: DriveTask, parameters: Sequence[tuple[nn.Module, str]]) -> str:
    """Return the reason why parameters can't be written, such as a tie; empty if they can."""
    try:
        for place in parameters:
            Transaction(task.net).check(*place)
    except UnsupportedModuleError as error:
        return error.found
    return ""


def _bias_of(parameters: Sequence[tuple[nn.Module, str]]) -> tuple[nn.Module, str] | None:
    return next((place for place in parameters if place[1] == "bias"), None)
