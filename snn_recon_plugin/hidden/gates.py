"""Gates and latches of a recurrent layer, with boundaries between what a neuron remembers of two samples at one step.

A tonic current holds a gate below its threshold.  The clock releases it at the step of its boundary.  A latch is a gate
that goes on to spike once it has: gates at a later step receive the event, as in a comparison of two cues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from .clock import FirstGeneration
from .neuron import MembraneKernel, record_spikes, split_in_blocks
from .recurrent import RecurrentSite
from .site import Candidates

_STEEP = (4.0, 16.0)  # difference of membrane between the two samples, in thresholds; drawn in equal ratios
_PARTNERS_DRAWN = 8  # samples drawn, of which the nearest of another class is the partner
_HOLD = 2.0  # tonic inhibition of a gate, in thresholds
_MIN_EFFECT_SHARE = 0.25  # least membrane from a neuron of the clock, as a share of the largest
_LATCHES = 0.25  # candidates for a latch, as a share of the layer's width
_SPARE = 0.5  # inhibition of a latch beyond the largest membrane that the inputs give, in thresholds
_HELD = 2.0  # current from a latch to itself, as a multiple of what keeps it above its threshold
_MIN_SAMPLE_SHARE = 0.02  # least share of samples in which a latch is on, and in which it is off


Trace: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # from samples and steps (k,) to what the membrane holds, (k, D)


@dataclass(frozen=True)
class Boundaries:
    """Rows whose membrane is ``middle`` half-way between two samples at a step."""

    weight: Tensor  # (k, D)
    middle: Tensor  # (k,)
    samples: Tensor  # (k,), the first of the two
    steps: Tensor  # (k,)


def draw_boundaries(trace: Trace, labels: Tensor, threshold: float, count: int, generator: torch.Generator) -> Boundaries:
    """Draw boundaries between a sample and the nearest of another class among a few, each at a random step.

    ``trace`` gives what the membrane holds of the inputs; labels are (T, n), at each step.
    """
    (length, total), device = labels.shape, labels.device
    first = torch.randint(total, (count,), generator=generator).to(device)
    steps = torch.randint(length, (count,), generator=generator).to(device)
    others = torch.randint(total, (_PARTNERS_DRAWN, count), generator=generator).to(device)
    here = trace(first, steps)
    nearest, there = torch.full_like(here[:, 0], torch.inf), torch.zeros_like(here)
    for other in others:
        found = trace(other, steps)
        distance = (here - found).square().sum(1)
        better = (distance < nearest) & (labels[steps, other] != labels[steps, first]) & (distance > 1e-12)
        nearest, there = torch.where(better, distance, nearest), torch.where(better[:, None], found, there)
    low, high = _STEEP
    steep = low * (high / low) ** torch.rand(count, generator=generator).to(here) * threshold
    weight = (here - there) * (steep / nearest)[:, None]
    middle = (weight * (here + there)).sum(1) / 2
    differ = nearest.isfinite()
    return Boundaries(weight[differ], middle[differ], first[differ], steps[differ])


def gate_weights(
    boundaries: Boundaries, response: MembraneKernel, traces: Tensor, has_bias: bool = True, hold: Tensor | float = _HOLD
) -> tuple[Tensor, Tensor]:
    """Return tonic currents (k,) and weights (k, P) from a clock, such that each row reaches its threshold at its boundary.

    ``traces`` (k, P) are what a row's membrane holds there of each neuron of the clock, through a weight of one.  ``hold`` is the
    tonic inhibition in thresholds, for each row (k,) or for all.  Rows without a bias get it from the clock, whose neurons take
    turns, so that their tonic currents are zero.
    """
    steady = response.kernel.cumsum(0)[boundaries.steps] if has_bias else traces.sum(1)
    tonic = -torch.as_tensor(hold).to(boundaries.weight) * response.threshold / response.kernel.sum()
    # The latest neuron that has left a trace there opens the gate no earlier than it must.
    useful = traces >= _MIN_EFFECT_SHARE * traces.amax(1, keepdim=True)
    phase = traces.shape[1] - 1 - useful.flip(1).float().argmax(1)
    here = traces.gather(1, phase[:, None])
    missing = response.threshold - boundaries.middle - tonic * steady
    weight = torch.where(here > 0, missing[:, None] / here.clamp_min(1e-12), torch.zeros_like(here))
    release = torch.zeros_like(traces).scatter(1, phase[:, None], weight)
    tonic = tonic.expand(len(traces))
    return (tonic, release) if has_bias else (torch.zeros_like(tonic), release + tonic[:, None])


def add_latches(seen: RecurrentSite, clock: FirstGeneration, generator: torch.Generator) -> FirstGeneration | None:
    """Return a clock with latches behind it; None if none distinguishes samples.

    The layer has tonic currents, and its neurons may have a weight from themselves.
    """
    steps, response = len(clock.spikes), seen.site.excitability.response
    inputs, labels = seen.inputs.expand(steps, -1, -1), seen.labels.expand(steps, -1)
    count = max(1, round(_LATCHES * seen.recurrent.width))
    boundaries = draw_boundaries(partial(response.trace, inputs), labels, response.threshold, count, generator)
    if len(boundaries.weight) == 0:
        return None
    blocks = split_in_blocks(inputs.shape[1], len(inputs), max(len(boundaries.weight), len(clock), inputs.shape[2]))
    lowest, highest = _find_range(response, inputs, boundaries.weight, blocks)
    closed = (highest / response.threshold + _SPARE).clamp_min(1 + _SPARE)
    tonic, release = gate_weights(boundaries, response, clock_traces(clock, boundaries, response), hold=closed)
    own = _HELD * (2 * response.threshold - tonic - lowest.clamp_max(0))
    rows = Candidates(boundaries.weight, tonic, before=release, autapses=own)
    currents = (clock.drive(samples, inputs)(rows) for samples in blocks)
    spikes = torch.cat([record_spikes(seen.recurrent.neuron, each, own) for each in currents], 1)
    share = (spikes[-1] != 0).float().mean(0)
    useful = ((share > _MIN_SAMPLE_SHARE) & (share < 1 - _MIN_SAMPLE_SHARE)).nonzero()[:, 0]
    if len(useful) == 0:
        return None
    together = torch.cat([clock.spikes.expand(-1, spikes.shape[1], -1), spikes[:, :, useful]], 2)
    return FirstGeneration("clock", *clock.join_rows(rows.take(useful)), together, len(useful))


def clock_traces(clock: FirstGeneration, boundaries: Boundaries, response: MembraneKernel) -> Tensor:
    """Return what a membrane holds of each neuron of a clock at the boundaries' steps, through a weight of one, (k, P)."""
    delayed = clock.delayed[:, :, : len(clock) - clock.latches]
    return response.trace(delayed, boundaries.samples.clamp_max(delayed.shape[1] - 1), boundaries.steps)


def _find_range(response: MembraneKernel, inputs: Tensor, weight: Tensor, blocks: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Return the lowest current and the highest membrane (k,) that the inputs (T, n, D) alone give to rows (k, D)."""
    lowest, highest = torch.full_like(weight[:, 0], torch.inf), torch.full_like(weight[:, 0], -torch.inf)
    for samples in blocks:
        driven = functional.linear(inputs[:, samples].to(weight), weight)
        lowest = torch.minimum(lowest, driven.amin((0, 1)))
        highest = torch.maximum(highest, response.respond(driven).amax((0, 1)))
    return lowest, highest
