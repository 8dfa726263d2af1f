"""Comparison of weights of one layer, by a temporary readout on samples that chose no rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import SilentLayerError
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from .decisions import LayerGain
from .hidden_task import RIDGES, HiddenTask
from .layer_alone import LayerAlone
from .rescale import RATE_ABOVE, RATES, TIE_LOSS_RATIO, find_gain, make_scaled_layer, scale_parameters, settle_gain
from .simulate import run_layer

_RATES = (RATE_ABOVE,), tuple(rate for rate in RATES if rate != RATE_ABOVE)  # tried one after the other
TRIED_LOSS_RATIO = 1.15  # ratio of the loss of some weights to a rebuilt layer's above which no more is tried with them


def choose_own(task: HiddenTask, number: int, compared: LayerAlone | None, rebuilt: Values) -> tuple[LayerGain, Values] | None:
    """Return a layer's own weights times a gain unless the rebuilt layer is better; a tie keeps them, without a gain if that ties.

    ``compared`` is the layer on the samples that compare, see :func:`measure_losses`.  Firing rates but one are tried only if the
    first trials come near.
    """
    layer = task.net_map.hidden[number]
    try:
        scaled = make_scaled_layer(task, layer)
    except SilentLayerError:
        return None
    with with_values(rebuilt):
        ((other, ridge),) = measure_losses(task, layer, (1.0,), compared)
    losses = {1.0: measure_losses(task, layer, (1.0,), compared, (ridge,))[0][0]}
    for rates in _RATES:
        gains = [gain for rate in rates if (gain := find_gain(scaled, rate)) is not None]
        found = measure_losses(task, layer, gains, compared, (ridge,))
        losses |= {gain: loss for gain, (loss, _) in zip(gains, found, strict=True)}
        if min(losses.values()) > TRIED_LOSS_RATIO * other:
            return None
    own, values = settle_gain(scaled, losses)
    if TIE_LOSS_RATIO * other < losses[own.gain]:
        return None
    reason = f"no worse than selected candidates on held-out samples, loss {losses[own.gain]:.3g} against {other:.3g}"
    return replace(own, reason=reason), values


def measure_losses(
    task: HiddenTask,
    layer: HiddenLayer,
    gains: Sequence[float],
    compared: LayerAlone | None = None,
    ridges: tuple[float, ...] = RIDGES,
) -> list[tuple[float, float]]:
    """Return the held-out loss of a temporary readout of a layer with each of some gains, and the best of some ridges.

    The layer is ``compared`` alone, or in the net.
    """
    if compared is not None and (compared.scales or tuple(gains) == (1.0,)):
        parts = [emitted.features for emitted in compared.run_own(gains)]
    else:
        parts = []
        for gain in gains:
            with with_values({} if gain == 1.0 else scale_parameters(layer, gain)):
                features = run_layer(task, layer, task.batches).features
            parts.append(features[task.temporary.find_rows(task.compared_samples[0].to(features.device))])
    return [task.comparison.evaluate_rows(features, ridges) for features in parts]
