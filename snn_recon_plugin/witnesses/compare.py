"""Comparison of a rebuilt layer with its own weights times a gain, on samples that chose no rows.

A temporary readout on the layer's filtered spikes is fitted for each, with the ridge that suits the rebuilt layer.  Own weights are
tried as they are and at one firing rate first.  The other rates can pay only if these come near the rebuilt layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import SilentLayerError
from ..networks import HiddenLayer, replace_parameters
from .decisions import LayerGain
from .hidden_task import RIDGES, CrossValidation, HiddenTask, ParameterValues, take_first_batches
from .rescale import RATE_ABOVE, RATES, TIE, find_gain, find_ties, make_scaled_layer, scale_parameters, settle_ties
from .simulate import Simulator, run_written

__all__ = ["NEAR", "Judge", "choose_own", "make_judge"]

# Gives the held-out loss of a layer with some values, and the best of some ridges.
Judge: TypeAlias = Callable[[ParameterValues, tuple[float, ...]], tuple[float, float]]

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


def make_judge(task: HiddenTask, layer: HiddenLayer, over_time: Tensor | None = None) -> Judge:
    """Return the judge of a layer.

    The layer runs on its inputs at these samples, ``over_time`` (T, m, D), or in the net.
    """
    samples, fitted = task.compared_samples
    split = (torch.arange(fitted), torch.arange(fitted, len(samples)))
    targets = task.targets[samples.to(task.targets.device)]
    validation = CrossValidation(task.temporary, targets, task.num_outputs, task.loss, [split])

    def evaluate(values: ParameterValues, ridges: tuple[float, ...]) -> tuple[float, float]:
        with replace_parameters(values):
            return validation.evaluate_rows(run_written(task, layer, samples, over_time), ridges)

    return evaluate
