"""Latches of a recurrent layer: gates that go on to spike once they have, so that neurons at later steps hear of an event.

A task such as "are the first and the second cue the same" needs three generations: a clock, latches that hold the first cue, and
gates that look at the second cue and at the latches together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import library_of
from .first_generation import First
from .gates import draw_boundaries, hold_and_release, measure_response
from .recurrent import RecurrentSite

__all__ = ["add_latches"]

_SHARE = 0.25  # candidates for a latch, as a share of the layer's width
_SPARE = 0.5  # inhibition beyond the largest membrane that the inputs give, in thresholds
_HOLD = 2.0  # current from a latch to itself, as a multiple of what keeps it above its threshold
_RARE = 0.02  # least share of samples that a latch tells from the others


def add_latches(neuron: nn.Module, seen: RecurrentSite, clock: First, width: int, generator: torch.Generator) -> First | None:
    """Return a clock with latches behind it, for a layer of ``width``; None if none tells samples apart.

    The layer has tonic currents, and its neurons may have a weight from themselves.
    """
    heard, steps = clock.heard, len(clock.spikes)
    inputs, labels = seen.inputs.expand(steps, -1, -1), seen.labels.expand(steps, -1)
    response = measure_response(neuron, steps, seen.site.excitability.rheobase, seen.site.inputs)
    boundaries = draw_boundaries(inputs, labels, response, max(1, round(_SHARE * width)), generator)
    if len(boundaries.weight) == 0:
        return None
    driven = functional.linear(inputs, boundaries.weight)
    closed = response.respond(driven).amax((0, 1)) / response.threshold + _SPARE
    tonic, release = hold_and_release(boundaries, response, heard, torch.ones_like(heard[..., 0]), closed.clamp_min(1 + _SPARE))
    against = 2 * response.threshold - tonic - driven.amin((0, 1)).clamp_max(0)
    own = _HOLD * against
    currents = driven + functional.linear(heard, release) + tonic
    spikes = library_of(neuron).run(neuron, currents, own).spikes
    share = spikes[-1].mean(0)
    useful = ((share > _RARE) & (share < 1 - _RARE)).nonzero()[:, 0]
    if len(useful) == 0:
        return None
    return First(
        "clock",
        torch.cat([clock.inputs, boundaries.weight[useful]]),
        _join_recurrent(clock.recurrent, release[useful], own[useful]),
        torch.cat([clock.tonic, tonic[useful]]),
        torch.cat([clock.spikes.expand(-1, spikes.shape[1], -1), spikes[:, :, useful].to(clock.spikes)], 2),
        len(useful),
    )


def _join_recurrent(clock: Tensor, release: Tensor, own: Tensor) -> Tensor:
    """Return the weights between all neurons of a clock and its latches."""
    above = torch.cat([clock, clock.new_zeros(len(clock), len(own))], 1)
    return torch.cat([above, torch.cat([release, own.diag()], 1)])
