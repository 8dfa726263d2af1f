"""Gates and latches of a recurrent layer, with boundaries between what a neuron remembers of two samples at one step.

A tonic current holds a gate below its threshold.  The clock releases it at the step of its boundary.  A latch is a gate
that goes on to spike once it has: gates at a later step receive the event, as in a comparison of two cues.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import library_of
from .clock import FirstGeneration
from .recurrent import RecurrentSite
from .response import Response
from .site import Candidates

_STEEP = (4.0, 16.0)  # difference of membrane between the two samples, in thresholds; drawn in equal ratios
_PARTNERS_DRAWN = 8  # samples drawn, of which the nearest of another class is the partner
_HOLD = 2.0  # tonic inhibition of a gate, in thresholds
_MIN_EFFECT_SHARE = 0.25  # least membrane from a neuron of the clock, as a share of the largest
_LATCHES = 0.25  # candidates for a latch, as a share of the layer's width
_SPARE = 0.5  # inhibition of a latch beyond the largest membrane that the inputs give, in thresholds
_HELD = 2.0  # current from a latch to itself, as a multiple of what keeps it above its threshold
_MIN_SAMPLE_SHARE = 0.02  # least share of samples in which a latch is on, and in which it is off


@dataclass(frozen=True)
class Boundaries:
    """Rows whose membrane is ``middle`` half-way between two samples at a step."""

    weight: Tensor  # (k, D)
    middle: Tensor  # (k,)
    samples: Tensor  # (k,), the first of the two
    steps: Tensor  # (k,)


def draw_boundaries(inputs: Tensor, labels: Tensor, response: Response, count: int, generator: torch.Generator) -> Boundaries:
    """Draw boundaries between a sample and the nearest of another class among a few, each at a random step.

    Inputs are (T, n, D) and labels, at each step, (T, n).
    """
    total, device = inputs.shape[1], inputs.device
    first = torch.randint(total, (count,), generator=generator).to(device)
    steps = torch.randint(len(inputs), (count,), generator=generator).to(device)
    others = torch.randint(total, (_PARTNERS_DRAWN, count), generator=generator).to(device)
    here = response.trace(inputs, first, steps)
    nearest, there = torch.full_like(here[:, 0], torch.inf), torch.zeros_like(here)
    for other in others:
        found = response.trace(inputs, other, steps)
        distance = (here - found).square().sum(1)
        better = (distance < nearest) & (labels[steps, other] != labels[steps, first]) & (distance > 1e-12)
        nearest, there = torch.where(better, distance, nearest), torch.where(better[:, None], found, there)
    low, high = _STEEP
    steep = low * (high / low) ** torch.rand(count, generator=generator).to(here) * response.threshold
    weight = (here - there) * (steep / nearest)[:, None]
    middle = (weight * (here + there)).sum(1) / 2
    differ = nearest.isfinite()
    return Boundaries(weight[differ], middle[differ], first[differ], steps[differ])


def hold_and_release(
    boundaries: Boundaries, response: Response, clock: Tensor, steady: Tensor, hold: Tensor | float = _HOLD
) -> tuple[Tensor, Tensor]:
    """Return tonic currents (k,) and weights (k, P) from a clock, such that each row reaches its threshold at its boundary.

    ``clock`` (T, n, P) are the currents at each step through a weight of one from each of its neurons.  ``steady`` (T, n) are
    the currents through a tonic weight of one.  n is 1 where all samples have the same.  ``hold`` is the tonic inhibition in
    thresholds, for each row (k,) or for all.
    """
    at = boundaries.steps, boundaries.samples.clamp_max(clock.shape[1] - 1)
    tonic = -torch.as_tensor(hold).to(boundaries.weight) * response.threshold / response.kernel.sum()
    felt = response.respond(clock)[at]
    # The latest neuron that is felt there opens the gate no earlier than it must.
    useful = felt >= _MIN_EFFECT_SHARE * felt.amax(1, keepdim=True)
    phase = felt.shape[1] - 1 - useful.flip(1).float().argmax(1)
    here = felt.gather(1, phase[:, None])
    missing = response.threshold - boundaries.middle - tonic * response.respond(steady)[at]
    weight = torch.where(here > 0, missing[:, None] / here.clamp_min(1e-12), torch.zeros_like(here))
    release = torch.zeros_like(felt).scatter(1, phase[:, None], weight)
    return tonic.expand(len(felt)), release


def add_latches(
    neuron: nn.Module, seen: RecurrentSite, clock: FirstGeneration, width: int, generator: torch.Generator
) -> FirstGeneration | None:
    """Return a clock with latches behind it, for a layer of ``width``; None if none distinguishes samples.

    The layer has tonic currents, and its neurons may have a weight from themselves.
    """
    delayed, steps = clock.delayed, len(clock.spikes)
    inputs, labels = seen.inputs.expand(steps, -1, -1), seen.labels.expand(steps, -1)
    response = seen.site.excitability.response
    boundaries = draw_boundaries(inputs, labels, response, max(1, round(_LATCHES * width)), generator)
    if len(boundaries.weight) == 0:
        return None
    driven = functional.linear(inputs, boundaries.weight)
    closed = response.respond(driven).amax((0, 1)) / response.threshold + _SPARE
    tonic, release = hold_and_release(boundaries, response, delayed, torch.ones_like(delayed[..., 0]), closed.clamp_min(1 + _SPARE))
    own = _HELD * (2 * response.threshold - tonic - driven.amin((0, 1)).clamp_max(0))
    spikes = library_of(neuron).run(neuron, driven + functional.linear(delayed, release) + tonic, own).spikes
    share = spikes[-1].mean(0)
    useful = ((share > _MIN_SAMPLE_SHARE) & (share < 1 - _MIN_SAMPLE_SHARE)).nonzero()[:, 0]
    if len(useful) == 0:
        return None
    weights = clock.join_rows(Candidates(boundaries.weight, tonic, before=release, autapses=own).take(useful))
    together = torch.cat([clock.spikes.expand(-1, spikes.shape[1], -1), spikes[:, :, useful].to(clock.spikes)], 2)
    return FirstGeneration("clock", *weights, together, len(useful))
