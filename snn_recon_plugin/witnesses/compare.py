"""Comparison of a rebuilt layer with its own weights times a gain, on samples that chose no rows.

A temporary readout on the layer's filtered spikes is fitted for each, with the ridge that suits the rebuilt layer.  Own weights are
tried as they are and at one firing rate first.  The other rates can pay only if these come near the rebuilt layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SilentLayerError
from ..networks import HiddenLayer, replace_parameters
from .decisions import LayerGain
from .hidden_task import RIDGES, CrossValidation, HiddenTask, ParameterValues, take_first_batches
from .rescale import RATE_ABOVE, RATES, TIE, find_gain, find_ties, make_scaled_layer, scale_parameters, settle_ties
from .simulate import Simulator, run_written

__all__ = ["NEAR", "Judge", "choose_own", "make_judge"]

NEAR = 1.15  # ratio of the loss of some weights to a rebuilt layer's above which no more is tried with them


def choose_own(
    task: HiddenTask, number: int, simulator: Simulator, rebuilt: ParameterValues
) -> tuple[LayerGain, ParameterValues] | None:
    """Return a layer's own weights times a gain unless the rebuilt layer is better; a tie keeps them, without a gain if that ties.

    The net holds the new values of the layers below.
    """
    layer = task.net_map.hidden[number]
    evaluate = make_judge(task, layer, simulator.compared)
    try:
        scaled = make_scaled_layer(task.net, take_first_batches(task.batches), layer, task.forward)
    except SilentLayerError:
        return None
    other, ridge = evaluate(rebuilt, RIDGES)
    losses = {1.0: evaluate({}, (ridge,))[0]}
    for rates in ((RATE_ABOVE,), tuple(rate for rate in RATES if rate != RATE_ABOVE)):
        gains = [gain for rate in rates if (gain := find_gain(scaled, rate)) is not None]
        losses |= {gain: evaluate(scale_parameters(layer, gain), (ridge,))[0] for gain in gains}
        if min(losses.values()) > NEAR * other:
            return None
    best = settle_ties(find_ties(losses), {gain: scaled.rate(gain) for gain in losses})
    if TIE * other < losses[best]:
        return None
    reason = f"no worse than selected candidates on held-out samples, loss {losses[best]:.3g} against {other:.3g}"
    decision = LayerGain(layer.name, best, scaled.rate(1.0), scaled.rate(best), losses, reason)
    return decision, {} if best == 1.0 else scale_parameters(layer, best)


@dataclass(frozen=True)
class Judge:
    """Judge of one layer's weights, by the held-out loss of a temporary readout."""

    task: HiddenTask
    layer: HiddenLayer
    over_time: Tensor | None  # inputs (T, m, D) of the samples that are compared, on which the layer runs; None runs the net
    validation: CrossValidation

    def __call__(self, values: ParameterValues, ridges: tuple[float, ...]) -> tuple[float, float]:
        """Return the loss of the layer with some values, and the best of some ridges."""
        samples, _ = self.task.compared_samples
        with replace_parameters(values):
            return self.validation.evaluate_rows(run_written(self.task, self.layer, samples, self.over_time), ridges)


def make_judge(task: HiddenTask, layer: HiddenLayer, over_time: Tensor | None = None) -> Judge:
    """Return the judge of a layer, which runs on its inputs ``over_time`` (T, m, D) or in the net."""
    samples, fitted = task.compared_samples
    split = (torch.arange(fitted), torch.arange(fitted, len(samples)))
    targets = task.targets[samples.to(task.targets.device)]
    return Judge(task, layer, over_time, CrossValidation(task.temporary, targets, task.num_outputs, task.loss, [split]))
