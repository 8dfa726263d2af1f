"""Convolutions: their rows stay, and a drive makes them spike, unless they decide as well as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import takewhile
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional

from ..networks.calls.record import StoredBatch, first_batches
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from .compare import TRIED_LOSS_RATIO
from .decisions import LayerGain
from .filtered_spikes import record_filtered
from .fluctuations import DriveTask, choose_drive
from .hidden_task import HiddenTask, take_some
from .rescale import RATES, TIE_LOSS_RATIO

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


def drive_layer(task: HiddenTask, number: int, rate: float = _RATES[0]) -> Driven:
    """Return gain and offset of a layer, and the values to write; the layers below have their new values."""
    batches = first_batches(task.batches, _MEASURED)
    return choose_drive(DriveTask(task.net, batches, task.forward, task.net_map.hidden), number, rate)


def compare_drives(task: HiddenTask, keeps: bool) -> Mapping[int, Driven]:
    """Return the decisions on the convolutions below all other hidden layers, by number; {} without one, or if nothing helps.

    All fire at one rate, the lowest one unless a higher one is far better, or all stay as they are, if ``keeps``.  A readout is
    fitted on the spikes of the last one, and evaluated on held-out images.  A tie keeps the weights if the last one fires at a
    healthy rate.
    """
    layers = list(takewhile(lambda layer: layer.is_convolution, task.net_map.hidden))
    if not layers:
        return {}
    batches = first_batches(task.batches, COMPARED_IMAGES)
    found: Mapping[int, Driven] = {}
    least = math.inf
    for rate in _RATES:
        driven, loss = _try_rate(task, len(layers), batches, rate)
        if loss * TRIED_LOSS_RATIO > least or math.isinf(loss):
            break
        found, least = driven, loss
    own, rate = _evaluate(task, layers[-1], batches) if keeps else (math.inf, 0.0)
    healthy = RATES[0] <= rate <= _RATES[-1]
    if own > TIE_LOSS_RATIO * least or (TIE_LOSS_RATIO * own > least and not healthy) or math.isinf(own):
        return found
    reason = f"no worse than with a new gain and offset on held-out samples, loss {own:.3g} against {least:.3g}"
    return {number: (LayerGain(layer.name, reason=reason), {}) for number, layer in enumerate(layers)}


def _try_rate(task: HiddenTask, count: int, batches: Sequence[StoredBatch], rate: float) -> tuple[dict[int, Driven], float]:
    """Return the drives of the first layers at a firing rate, and the held-out loss with them."""
    found: dict[int, Driven] = {}
    with ExitStack() as stack:
        for number in range(count):
            found[number] = drive_layer(task, number, rate)
            stack.enter_context(with_values(found[number][1]))
        loss, _ = _evaluate(task, task.net_map.hidden[count - 1], batches)
    return found, loss


def _evaluate(task: HiddenTask, layer: HiddenLayer, batches: Sequence[StoredBatch]) -> tuple[float, float]:
    """Return the held-out loss of a readout of a layer's spikes, and their mean rate."""
    found = record_filtered(task, layer, batches, pool_positions)
    validation = task.cross_validate(batches[-1].rows.stop)
    loss, _ = replace(validation, splits=validation.splits[:_FOLDS]).evaluate_rows(found.features)
    return loss, float(found.rate.mean())


def pool_positions(features: Tensor) -> Tensor:
    """Return features (n, P): positions (n, C, *) averaged on a grid, since images of other batches may have another size."""
    pool = _POOLS.get(features.dim() - 2)
    return take_some((features if pool is None else pool[0](features, pool[1])).flatten(1))
