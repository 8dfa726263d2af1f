"""Comparison of a rebuilt layer with its own weights times a gain, by a temporary readout on samples that chose no rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import SilentLayerError
from ..networks import HiddenLayer, replace_parameters
from .decisions import LayerGain
from .hidden_task import RIDGES, CrossValidation, HiddenTask, ParameterValues
from .rescale import RATE_ABOVE, RATES, TIE_LOSS_RATIO, find_gain, make_scaled_layer, scale_parameters, settle_gain
from .simulate import Simulator, run_written

TRIED_LOSS_RATIO = 1.15  # ratio of the loss of some weights to a rebuilt layer's above which no more is tried with them


def choose_own(
    task: HiddenTask, number: int, simulator: Simulator, rebuilt: ParameterValues
) -> tuple[LayerGain, ParameterValues] | None:
    """Return a layer's own weights times a gain unless the rebuilt layer is better; a tie keeps them, without a gain if that ties.

    The net holds the new values of the layers below.  Firing rates but one are tried only if the first trials come near.
    """
    layer = task.net_map.hidden[number]
    evaluate = HeldOutLoss(task, layer, simulator.compared)
    try:
        scaled = make_scaled_layer(task, layer)
    except SilentLayerError:
        return None
    other, ridge = evaluate(rebuilt)
    losses = {1.0: evaluate({}, (ridge,))[0]}
    for rates in ((RATE_ABOVE,), tuple(rate for rate in RATES if rate != RATE_ABOVE)):
        gains = [gain for rate in rates if (gain := find_gain(scaled, rate)) is not None]
        losses |= {gain: evaluate(scale_parameters(layer, gain), (ridge,))[0] for gain in gains}
        if min(losses.values()) > TRIED_LOSS_RATIO * other:
            return None
    own, values = settle_gain(scaled, losses)
    if TIE_LOSS_RATIO * other < losses[own.gain]:
        return None
    reason = f"no worse than selected candidates on held-out samples, loss {losses[own.gain]:.3g} against {other:.3g}"
    return replace(own, reason=reason), values


class HeldOutLoss:
    """Held-out loss of a temporary readout, by which weights of one layer are compared.

    The layer runs on its inputs ``over_time`` (T, m, D) of the samples that are compared, or in the net.
    """

    def __init__(self, task: HiddenTask, layer: HiddenLayer, over_time: Tensor | None = None) -> None:
        self._task, self._layer, self._over_time = task, layer, over_time
        self._samples, fitted = task.compared_samples
        split = (torch.arange(fitted), torch.arange(fitted, len(self._samples)))
        samples = self._samples.to(task.targets.device)
        weights = None if task.weights is None else task.weights[samples]
        self.validation = CrossValidation(task.temporary, task.targets[samples], task.num_outputs, task.loss, [split], weights)

    def __call__(self, values: ParameterValues, ridges: tuple[float, ...] = RIDGES) -> tuple[float, float]:
        """Return the loss of the layer with some values, and the best of some ridges."""
        with replace_parameters(values):
            features = run_written(self._task, self._layer, self._samples, self._over_time)
        return self.validation.evaluate_rows(features, ridges)
