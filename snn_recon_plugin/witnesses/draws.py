"""Whole-layer draws for recurrent layers: input rows from a sampler, new recurrent weights, and a firing rate to try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..networks import library_of
from .hidden_task import ParameterValues
from .neuron import Excitability
from .recurrent import RecurrentLayer, copy_as_linear
from .samplers import Sampler, draw_candidates
from .site import LayerSite

__all__ = ["list_draws"]

_RATES = (0.06, 0.12, 0.03)  # spikes a neuron and step, used in turn
# Standard deviation of the current if all neurons spike, in thresholds, used in turn.  None keeps the layer's recurrent weights.
_RECURRENT_STDS = (0.3, None, 1.0, 0.1)


def list_draws(
    recurrent: RecurrentLayer, site: LayerSite, sampler: Sampler, count: int, generator: torch.Generator
) -> Iterator[tuple[ParameterValues, float]]:
    """Yield draws of a whole layer, before a gain, and the firing rate at which each is to be tried."""
    # One gain for the whole layer is chosen afterwards, so currents are in units of the rheobase.
    excitability = Excitability(1.0, 2.0, 1.0, site.excitability.memory)
    site = replace(site, synapse=copy_as_linear(recurrent, recurrent.input_bias), excitability=excitability, variants=())
    for number in range(count):
        yield _draw_values(recurrent, site, sampler, number, generator), _RATES[number % len(_RATES)]


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
