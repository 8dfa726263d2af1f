"""Comparison of weights of one layer, by a temporary readout on samples that chose no rows."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..errors import SilentLayerError
from ..networks import HiddenLayer, Values, trying
from .decisions import LayerGain
from .hidden_task import RIDGES, HiddenTask
from .neuron import read_unit_values
from .rescale import RATE_ABOVE, RATES, TIE_LOSS_RATIO, find_gain, make_scaled_layer, scale_parameters, settle_gain
from .simulate import run_alone, run_layer
from .site import Candidates, weight_of

TRIED_LOSS_RATIO = 1.15  # ratio of the loss of some weights to a rebuilt layer's above which no more is tried with them


def choose_own(task: HiddenTask, number: int, over_time: Tensor | None, rebuilt: Values) -> tuple[LayerGain, Values] | None:
    """Return a layer's own weights times a gain unless the rebuilt layer is better; a tie keeps them, without a gain if that ties.

    ``over_time`` are the inputs of the compared samples, see :func:`measure_loss`.  Firing rates but one are tried only if the
    first trials come near.
    """
    layer = task.net_map.hidden[number]
    try:
        scaled = make_scaled_layer(task, layer)
    except SilentLayerError:
        return None
    other, ridge = measure_loss(task, layer, rebuilt, over_time)
    losses = {1.0: measure_loss(task, layer, {}, over_time, (ridge,))[0]}
    for rates in ((RATE_ABOVE,), tuple(rate for rate in RATES if rate != RATE_ABOVE)):
        gains = [gain for rate in rates if (gain := find_gain(scaled, rate)) is not None]
        losses |= {gain: measure_loss(task, layer, scale_parameters(layer, gain), over_time, (ridge,))[0] for gain in gains}
        if min(losses.values()) > TRIED_LOSS_RATIO * other:
            return None
    own, values = settle_gain(scaled, losses)
    if TIE_LOSS_RATIO * other < losses[own.gain]:
        return None
    reason = f"no worse than selected candidates on held-out samples, loss {losses[own.gain]:.3g} against {other:.3g}"
    return replace(own, reason=reason), values


def measure_loss(
    task: HiddenTask, layer: HiddenLayer, values: Values, over_time: Tensor | None = None, ridges: tuple[float, ...] = RIDGES
) -> tuple[float, float]:
    """Return the held-out loss of a temporary readout of a layer with some values, and the best of some ridges.

    The layer runs on its inputs ``over_time`` (T, m, D), or (1, m, D) if constant, of the samples that are compared, or in the net.
    """
    with trying(values):
        if over_time is not None and not read_unit_values(layer.neuron, len(weight_of(layer.synapse))):
            weight, bias = weight_of(layer.synapse), layer.synapse.bias
            rows = Candidates(weight.detach(), bias.detach() if isinstance(bias, Tensor) else None)
            features = run_alone(layer, over_time, task.temporary.filters, rows).features
        else:
            features = run_layer(task, layer, task.batches).features
            features = features[task.temporary.find_rows(task.compared_samples[0].to(features.device))]
    return task.comparison.evaluate_rows(features, ridges)
