"""Drive of hidden layers, without labels: a gain and offsets with which the currents' fluctuations make neurons spike.

A layer's bias is dropped, and a unit whose mean current lies further from zero than its standard deviation is shifted to there:
so what differs between samples makes it spike.  The gain then gives a firing rate.  After Rossbroich, Gygax and Zenke (2022), who
derive gains for Poisson inputs; here the fluctuations are measured.

Convolutions keep their rows, and a drive makes them spike, unless they decide as well as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import takewhile
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional

from ..errors import SilentLayerError, UnsupportedModuleError
from ..networks.calls.calls import CallRecorder
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from ..networks.write import Transaction
from .gains import CURRENT_BYTES, RATES, TIE_LOSS_RATIO, TRIED_LOSS_RATIO, DrivenLayer, along, explain_fixed
from .hidden_task import HiddenTask, LayerGain, take_some
from .stage import has_statistics, measure_statistics

RATE = 0.05  # spikes a neuron and step; at twice as many nine convolutions learned nothing
_SIMULATED = 2**18  # currents, at all steps, on which the rate of a gain is measured
_FEWEST = 16  # samples of these at least
_CONSTANT = 1e-6  # spread of the currents over samples, relative to their size, that is rounding alone
COMPARED_IMAGES = 300  # an image has many positions
_MEASURED = 64  # images on which currents are measured
_FOLDS = 2  # of four, that are held out in turn
_RATES = (0.03, 0.1, 0.3)  # spikes a neuron and step; on hard images most nets decide and train better at low ones

# About nine pooled positions, by the number of axes: a readout needs to know roughly where a feature is.
_POOLS: Mapping[int, tuple[Callable[[Tensor, int], Tensor], int]] = {
    1: (functional.adaptive_avg_pool1d, 9),
    2: (functional.adaptive_avg_pool2d, 3),
    3: (functional.adaptive_avg_pool3d, 2),
}

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


def drive_layer(task: HiddenTask, number: int, rate: float = _RATES[0]) -> Driven:
    """Return gain and offset of a layer, and the values to write; the layers below have their new values."""
    return choose_drive(task.recorder.first(_MEASURED), task.net_map.hidden, number, rate=rate)


def compare_drives(task: HiddenTask, keeps: bool) -> Mapping[int, Driven]:
    """Return the decisions on the convolutions below all other hidden layers, by number; {} without one, or if nothing helps.

    All fire at one rate, the lowest one unless a higher one is far better, or all stay as they are, if ``keeps``.  A readout is
    fitted on the spikes of the last one, and evaluated on held-out images.  A tie keeps the weights if the last one fires at a
    healthy rate.
    """
    layers = list(takewhile(lambda layer: layer.is_convolution, task.net_map.hidden))
    if not layers:
        return {}
    found, least = dict[int, Driven](), math.inf
    for rate in _RATES:
        try:
            driven, loss = _try_rate(task, len(layers), rate)
        except SilentLayerError:  # no gain gives that rate, as on a black ground
            break
        if loss * TRIED_LOSS_RATIO > least or math.isinf(loss):
            break
        found, least = driven, loss
    own, rate = _evaluate(task, layers[-1]) if keeps else (math.inf, 0.0)
    if own > TIE_LOSS_RATIO * least or (TIE_LOSS_RATIO * own > least and not RATES[0] <= rate <= _RATES[-1]) or math.isinf(own):
        return found
    reason = f"no worse than with a new gain and offset on held-out samples, loss {own:.3g} against {least:.3g}"
    return {number: (LayerGain(layer.name, reason=reason), {}) for number, layer in enumerate(layers)}


def _try_rate(task: HiddenTask, count: int, rate: float) -> tuple[dict[int, Driven], float]:
    """Return the drives of the first layers at a firing rate, and the held-out loss with them."""
    found: dict[int, Driven] = {}
    with ExitStack() as stack:
        for number in range(count):
            found[number] = drive_layer(task, number, rate)
            stack.enter_context(with_values(found[number][1]))
        return found, _evaluate(task, task.net_map.hidden[count - 1])[0]


def _evaluate(task: HiddenTask, layer: HiddenLayer) -> tuple[float, float]:
    """Return the held-out loss of a readout of a layer's spikes, and their mean rate."""
    recorder = task.recorder.first(COMPARED_IMAGES)
    found = recorder.filter_spikes(layer, task.temporary.filters, pool_positions)
    validation = task.cross_validate(recorder.batches[-1].rows.stop)
    loss, _ = replace(validation, splits=validation.splits[:_FOLDS], tempered=True).evaluate_rows(found.features)
    return loss, float(found.rate.mean())


def pool_positions(features: Tensor) -> Tensor:
    """Return features (n, P): positions (n, C, *) averaged on a grid, since images of other batches may have another size."""
    pool = _POOLS.get(features.dim() - 2)
    return take_some((features if pool is None else pool[0](features, pool[1])).flatten(1))
