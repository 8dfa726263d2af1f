"""Drive of hidden layers, without labels: a gain and offsets with which the currents' fluctuations make neurons spike.

A layer's bias is dropped, and a unit whose mean current lies further from zero than its standard deviation is shifted to there:
so what differs between samples makes it spike.  The gain then gives a firing rate.  After Rossbroich, Gygax and Zenke (2022), who
derive gains for Poisson inputs; here the fluctuations are measured.

Convolutions keep their weights, but for those that hardly spike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks.calls.calls import CallRecorder
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from ..networks.write import Transaction
from .gains import CURRENT_BYTES, DrivenLayer, along, explain_fixed
from .hidden_task import HiddenTask, LayerGain
from .stage import has_statistics, measure_statistics

RATE = 0.05  # spikes a neuron and step; at twice as many nine convolutions learned nothing
_SIMULATED = 2**18  # currents, at all steps, on which the rate of a gain is measured
_FEWEST = 16  # samples of these at least
_CONSTANT = 1e-6  # spread of the currents over samples, relative to their size, that is rounding alone
DRIVE_SAMPLES = 64  # images on which the currents of a convolution are measured
_LOWEST, _HIGHEST = 0.01, 0.9  # spikes a neuron and step between which a convolution keeps its weights

Driven: TypeAlias = tuple[LayerGain, Values]  # a decision, and the values to write


def choose_drive(recorder: CallRecorder, layers: Sequence[HiddenLayer], number: int, *, rate: float = RATE) -> Driven:
    """Return gain and offset that make one hidden layer fire at a rate, and the values to write; refuse constant currents."""
    layer = layers[number]
    unwritable = (Transaction(recorder.net).explain(*place) for place in layer.weights.parameters)  # such as a tie
    reason = explain_fixed(layer, layers) or next(filter(None, unwritable), "")
    if reason:
        return LayerGain(layer.name, reason=reason), {}
    norms = [] if layer.norm is None or not has_statistics(layer.norm) else [layer.norm]
    running = measure_statistics(recorder, norms)
    with with_values(running):
        driven = _remove_excess(recorder, layer)
        gain = driven.find_gain(rate)
        if gain is None:
            return LayerGain(layer.name, reason="no gain gives that firing rate: too few of its currents are positive"), {}
        offset = 0.0 if driven.excess is None else -gain * float(driven.excess.mean())
        return LayerGain(layer.name, gain, offset), {**running, **driven.values(gain)}


def _remove_excess(recorder: CallRecorder, layer: HiddenLayer) -> DrivenLayer:
    """Measure the excess of a layer's currents; its neuron runs alone where that gives what it does in the net."""
    driven = DrivenLayer(recorder, layer, _FEWEST)
    if layer.synapse is layer.neuron:
        return driven
    try:
        currents = recorder.record_currents(layer, most=CURRENT_BYTES)
    except UnsupportedModuleError:
        return driven
    _refuse_constant(layer, currents)
    bias = next((getattr(*place) for place in layer.weights.parameters if place[1] == "bias"), None)
    excess = None if bias is None else _excess(currents, bias)
    driven, few = replace(driven, excess=excess), take_few(currents)
    alone = replace(driven, few=None, currents=few if excess is None else few - along(excess, few, axis=2))
    try:
        alone.rate(1.0)
    except UnsupportedModuleError:
        return driven
    return alone if alone.follows(2.0) else driven


def take_few(currents: Tensor) -> Tensor:
    """Return the currents ``[T, n, *]`` of as many of the first samples as give a rate."""
    return currents[:, : max(_FEWEST, _SIMULATED * currents.shape[1] // currents.numel())]


def _refuse_constant(layer: HiddenLayer, currents: Tensor) -> None:
    """Refuse a layer whose currents are the same for all samples: its spikes could say nothing about them."""
    if bool(((currents - currents[:, :1]).abs() > _CONSTANT * currents.abs().max()).any()):
        return
    found = f"hidden layer {layer.name!r} gets the same current for every sample"
    fix = "check that the inputs are not all zero, as behind a silent encoder, and that no frozen layer below it is silent"
    raise SilentLayerError(found, "currents that differ between samples", fix)


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


def keep_convolution(task: HiddenTask, number: int) -> Driven:
    """Keep a convolution as it is, or drive it where it hardly spikes or spikes nearly always; return the values to write.

    The layers below have their new values.
    """
    layer, few = task.net_map.hidden[number], task.recorder.first(DRIVE_SAMPLES)
    if _LOWEST <= DrivenLayer(few, layer).rate(1.0) <= _HIGHEST:
        return LayerGain(layer.name, reason="convolutions keep their weights"), {}
    return choose_drive(few, task.net_map.hidden, number)
