"""Whole-layer draws for recurrent layers, whose neurons depend on each other and can't be selected row by row.

A draw has input rows from a sampler, new recurrent weights, and a gain that gives a firing rate.  The held-out loss of a temporary
readout chooses between the draws and the layer's own weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from ..networks import library_of, replace_parameters
from .decisions import LayerGain
from .hidden_task import ParameterValues
from .neuron import Excitability
from .recurrent import RecurrentLayer, copy_as_linear
from .rescale import TIE, scale_parameters
from .samplers import Sampler, draw_candidates
from .site import LayerSite

__all__ = ["choose_draw"]

_RATES = (0.06, 0.12, 0.03)  # spikes a neuron and step, used in turn
# Standard deviation of the current if all neurons spike, in thresholds, used in turn.  None keeps the layer's recurrent weights.
_RECURRENT_STDS = (0.3, None, 1.0, 0.1)


def choose_draw(
    recurrent: RecurrentLayer,
    site: LayerSite,
    own: LayerGain,
    sampler: Sampler,
    count: int,
    generator: torch.Generator,
    evaluate: Callable[[ParameterValues, float], tuple[float, float]],
) -> tuple[LayerGain, ParameterValues] | None:
    """Return the best of ``count`` draws and the values to write; None unless it is better than the layer's own weights.

    ``own`` is the decision for these.  ``evaluate`` returns the gain at which a draw fires at a rate, and the held-out loss there.
    """
    # One gain for the whole layer is chosen afterwards, so currents are in units of the rheobase.
    memory = site.excitability.memory
    site = replace(
        site, synapse=copy_as_linear(recurrent, recurrent.input_bias), excitability=Excitability(1.0, 2.0, 1.0, memory), variants=()
    )
    before = own.heldout_loss.get(own.gain, math.inf)
    best: tuple[LayerGain, ParameterValues] | None = None
    least, losses = before, list[float]()
    for number in range(count):
        values = _draw_values(recurrent, site, sampler, number, generator)
        rate = _RATES[number % len(_RATES)]
        gain, loss = evaluate(values, rate)
        losses.append(loss)
        if loss < least and TIE * loss < before:  # a tie does not justify a change
            least = loss
            with replace_parameters(values):
                scaled = {**values, **scale_parameters(recurrent.layer, gain)}
            text = f"draw {number + 1} of {count}: held-out loss {loss:.3g}, own weights {before:.3g}"
            best = replace(own, gain=1.0, rate_after=rate, reason=text, draw=number + 1), scaled
    return None if best is None else (replace(best[0], draw_losses=tuple(losses)), best[1])


def _draw_values(
    recurrent: RecurrentLayer, site: LayerSite, sampler: Sampler, number: int, generator: torch.Generator
) -> ParameterValues:
    """Return the values of one draw, before its gain."""
    weight, neuron = recurrent.weight, recurrent.layer.neuron
    width = len(weight)
    rows = draw_candidates(sampler, site, width, generator)
    rows = rows.take(torch.arange(width, device=rows.weight.device) % len(rows))
    values: ParameterValues = {recurrent.input_weight: rows.weight.to(weight)}
    if recurrent.input_bias is not None and rows.bias is not None:
        values[recurrent.input_bias] = rows.bias.to(weight)
    std = _RECURRENT_STDS[number % len(_RECURRENT_STDS)]
    if recurrent.recurrent_weight is not None and std is not None:
        limits = library_of(neuron).threshold(neuron)
        threshold = 1.0 if limits is None else limits[1]
        drawn = torch.randn(width, width, generator=generator) * (std * threshold / width**0.5)
        if not recurrent.autapses:
            drawn.fill_diagonal_(0.0)
        values[recurrent.recurrent_weight] = drawn.to(weight)
    return values
