"""First generation of a recurrent layer: a random reservoir, or a clock, whose neurons fire one after the other.

A neuron of a clock spikes once and makes the next one spike.  If there are too few neurons for all steps, it spikes for several
steps: it sustains itself while the next one charges, and that one stops it.  Weights are found by simulating the layer's neuron.

A gate has a boundary between what a neuron remembers of two samples at one step.  A tonic current holds it below its threshold, and
the clock releases it at that step.  A latch is a gate that goes on to spike once it has: gates at a later step receive the event,
as in a comparison of two cues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.libraries import library_of
from .neuron import Excitability, record_spikes, run_units, split_in_blocks
from .recurrent import RecurrentSite
from .site import Candidates

_NEURONS_EACH = 16  # neurons of the layer for each of its clock's, at least
_PULSES_MORE = 2  # factor by which a clock may be larger if phases of several steps are impossible
CHUNK_UNITS = 256  # units simulated together: neurons that hold their weights take a matrix of this width
_MAX_DELAY = 4  # steps from a spike to the next neuron's
_HORIZON = 60  # steps after which a neuron that was to spike once has forgotten its input
_RETURNS = (0.0, -0.5, -0.65, -0.8, -1.0, -1.25)  # of the drive, that come back to a neuron after its spike
_STOP = 4.0  # inhibition that ends a phase, in units of all that excites the neuron
_MARGIN = 4  # neighbouring weights that must keep time too
_LOG10_DRIVES = (-2.0, 3.0)  # of the weights tried, in thresholds
_DRIVES = 80  # weights tried, in equal ratios
_STEEP = (4.0, 16.0)  # difference of membrane between the two samples, in thresholds; drawn in equal ratios
_PARTNERS_DRAWN = 8  # samples drawn, of which the nearest of another class is the partner
_HOLD = 2.0  # tonic inhibition of a gate, in thresholds
_MIN_EFFECT_SHARE = 0.25  # least membrane from a neuron of the clock, as a share of the largest
_LATCHES = 0.25  # candidates for a latch, as a share of the layer's width
_SPARE = 0.5  # inhibition of a latch beyond the largest membrane that the inputs give, in thresholds
_HELD = 2.0  # current from a latch to itself, as a multiple of what keeps it above its threshold
_MIN_SAMPLE_SHARE = 0.02  # least share of samples in which a latch is on, and in which it is off


@dataclass(frozen=True)
class FirstGeneration:
    """First generation of a layer: neurons that receive the inputs and each other's spikes."""

    kind: str
    inputs: Tensor  # (P, D)
    recurrent: Tensor  # (P, P)
    tonic: Tensor  # (P,)
    spikes: Tensor  # (T, n, P), or (T, 1, P) if the inputs don't change them; bytes if all are 0 or 1
    latches: int = 0  # number of its last neurons that hold an event

    def __len__(self) -> int:
        return len(self.tonic)

    @property
    def delayed(self) -> Tensor:
        """Its spikes at the step at which the others receive them."""
        return _delay(self.spikes)

    def drive(self, samples: slice, inputs: Tensor) -> Callable[[Candidates], Tensor]:
        """Return a function from rows to their currents (T, k, M) in some samples, from inputs ``[T, n, D]`` and its spikes."""
        spikes = self.spikes if self.spikes.shape[1] == 1 else self.spikes[:, samples]
        delayed, inputs = _delay(spikes).to(self.tonic), inputs[:, samples].to(self.tonic)

        def currents_of(rows: Candidates) -> Tensor:
            assert rows.before is not None
            currents = functional.linear(inputs, rows.weight, rows.bias).expand(len(delayed), -1, -1).contiguous()
            if delayed.shape[1] == 1:
                return currents.add_(functional.linear(delayed, rows.before))
            currents.flatten(0, 1).addmm_(delayed.flatten(0, 1), rows.before.T)  # without a second array of all steps
            return currents

        return currents_of

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each neuron, (P,)."""
        return (self.kind,) * (len(self) - self.latches) + ("latches",) * self.latches

    def join_rows(self, rows: Candidates) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, recurrent weights and tonic currents with more neurons, which receive these ones' spikes and their own."""
        assert rows.bias is not None
        assert rows.before is not None
        assert rows.autapses is not None
        above = functional.pad(self.recurrent, [0, len(rows)])
        recurrent = torch.cat([above, torch.cat([rows.before, rows.autapses.diag()], 1)])
        return torch.cat([self.inputs, rows.weight]), recurrent, torch.cat([self.tonic, rows.bias])


def _delay(spikes: Tensor) -> Tensor:
    """Return spikes (T, n, P) one step later; those of the last step are dropped."""
    return functional.pad(spikes[:-1], [0, 0, 0, 0, 1, 0])


def simulate_first(
    kind: str, neuron: nn.Module, inputs: Tensor, weight: Tensor, recurrent: Tensor, tonic: Tensor
) -> FirstGeneration:
    """Return neurons of some weights, simulated on inputs (T, n, D)."""
    blocks = split_in_blocks(inputs.shape[1], len(inputs), max(weight.shape))
    currents = (functional.linear(inputs[:, samples].to(weight), weight, tonic) for samples in blocks)
    spikes = torch.cat([record_spikes(neuron, each, recurrent) for each in currents], 1)
    return FirstGeneration(kind, weight, recurrent, tonic, spikes)


def make_clock(
    neuron: nn.Module, inputs: Tensor, width: int, *, tonic: bool, autapses: bool, dtype: torch.dtype = torch.float32
) -> FirstGeneration | None:
    """Return a clock that covers all steps of inputs (T, n, D), for a layer of ``width`` whose weights have a type.

    None if the neuron can't keep time, or the layer is too narrow.  Without a ``tonic`` current the first input of a sample starts
    the clock.  Without ``autapses`` no neuron has a weight from itself but the first one, which silences it.
    """
    still, most = inputs.new_zeros(len(inputs), 1, inputs.shape[2], dtype=dtype), width // _NEURONS_EACH
    pulse = _find_pulse(neuron, min(len(inputs), _HORIZON), autapses, still)
    pulses = len(inputs) if pulse is None else math.ceil(len(inputs) / pulse.delay)
    clock = None
    if autapses and 1 < most < pulses:
        clock = _make_plateaus(neuron, math.ceil(len(inputs) / most), still)
    if clock is None and pulse is not None and pulses <= _PULSES_MORE * most:
        clock = _make_chain(neuron, pulse, still)
    return clock if clock is None or tonic else _start_by_inputs(neuron, inputs, clock)


@dataclass(frozen=True)
class _Pulse:
    """Weights of a chain whose neurons spike once."""

    drive: float  # to the next neuron
    own: float  # to itself
    back: float  # to the one before
    delay: int  # steps from a neuron's spike to that of the next one


def _find_pulse(neuron: nn.Module, steps: int, autapses: bool, like: Tensor) -> _Pulse | None:
    """Return weights with which a neuron spikes once after its predecessor: those of least inhibition that leave a margin."""
    drives = _list_drives(neuron, _DRIVES, like)
    own = torch.tensor(_RETURNS if autapses else (0.0,)).to(drives)
    drive, own, back = (grid.flatten() for grid in torch.meshgrid(drives, own, torch.tensor(_RETURNS).to(drives), indexing="ij"))
    for delay in range(1, _MAX_DELAY + 1):
        currents = torch.zeros(max(steps, 2 * delay + 2), 1, len(drive)).to(drives)
        currents[1, 0] = drive
        currents[delay + 1, 0] += own * drive
        currents[2 * delay + 1, 0] += back * drive
        spikes = _simulate_apart(neuron, currents)
        once = (spikes.sum(0) == 1) & (spikes[delay] == 1)
        valid = once.reshape(_DRIVES, -1)
        if bool(valid.any()):
            margins = valid.sum(0)
            best = int((margins >= min(_MARGIN, int(margins.max()))).nonzero()[0])  # the first has the least inhibition
            inside = valid[:, best].nonzero()[:, 0]
            row = int(inside[min(len(inside), 2 * _MARGIN) // 2]) * valid.shape[1] + best
            return _Pulse(float(drive[row]), float(own[row] * drive[row]), float(back[row] * drive[row]), delay)
    return None


def _list_drives(neuron: nn.Module, count: int, like: Tensor) -> Tensor:
    """Return currents among which one that makes the neuron spike is expected, ascending in equal ratios, (count,)."""
    limits = library_of(neuron).threshold(neuron)
    assert limits is not None
    return (limits[1] * torch.logspace(*_LOG10_DRIVES, count, dtype=torch.float64)).to(like)


def _simulate_apart(neuron: nn.Module, currents: Tensor) -> Tensor:
    """Return the spikes (T, M) of units without weights between them, on currents (T, 1, M)."""
    return torch.cat([run_units(neuron, part).spikes[:, 0] for part in torch.split(currents, CHUNK_UNITS, 2)], 1).cpu()


def _make_chain(neuron: nn.Module, pulse: _Pulse, still: Tensor) -> FirstGeneration | None:
    """Return a clock whose neurons spike once each, every ``pulse.delay`` steps; None if they don't."""
    eye = torch.eye(math.ceil(len(still) / pulse.delay))
    recurrent = pulse.drive * eye.roll(1, 0) + pulse.own * eye + pulse.back * eye.roll(1, 1)
    recurrent[0] = -_STOP * pulse.drive  # it has a bias, and any other's spike silences it
    if len(eye) > 1:
        recurrent[-1, 0] = 0.0
    clock = _run_clock(neuron, recurrent, pulse.drive, still)
    return clock if bool((clock.spikes.sum(0) == 1).all()) else None


def _make_plateaus(neuron: nn.Module, length: int, still: Tensor) -> FirstGeneration | None:
    """Return a clock whose neurons spike at every step of a phase of ``length`` steps, and at the next step.

    None if one of these isn't found: a constant current after which the first spike comes at step ``length``; a current with a
    spike at every step; weights with which neurons start in turn, and stop.
    """
    steps, drives = len(still), _list_drives(neuron, 4 * _DRIVES, still)
    constant = drives.expand(steps + length, 1, -1).clone()
    constant[0] = 0.0
    spikes = _simulate_apart(neuron, constant)
    charging = ((spikes.argmax(0) == length) & (spikes[length] == 1)).nonzero()[:, 0]
    steady = (spikes[_MAX_DELAY:] == 1).all(0).nonzero()[:, 0]
    if len(charging) == 0 or len(steady) == 0:
        return None
    charge, sustain = float(drives[charging[len(charging) // 2]]), 2 * float(drives[steady[0]])
    eye, stop = torch.eye(math.ceil(steps / length)), _STOP * (sustain + charge)
    recurrent = charge * eye.roll(1, 0) + sustain * eye - stop * eye.roll(1, 1)
    recurrent[0] = -stop
    recurrent[0, 0] = recurrent[-1, 0] = 0.0
    clock = _run_clock(neuron, recurrent, sustain, still)
    seen = clock.spikes[:, 0].float()
    starts = torch.where(seen.any(0), seen.argmax(0), steps)
    in_turn = bool((starts.diff() > 0).all()) and int(starts[-1]) < steps
    return clock if in_turn and int(seen.sum(0).max()) <= 2 * length + _MAX_DELAY else None


def _run_clock(neuron: nn.Module, recurrent: Tensor, bias: float, still: Tensor) -> FirstGeneration:
    """Return a clock whose first neuron has a bias, simulated on inputs (T, 1, D) of zero."""
    tonic = functional.pad(torch.tensor([bias]), [0, len(recurrent) - 1])
    rows = still.new_zeros(len(recurrent), still.shape[2])
    return simulate_first("clock", neuron, still, rows, recurrent.to(still), tonic.to(still))


def _start_by_inputs(neuron: nn.Module, inputs: Tensor, clock: FirstGeneration) -> FirstGeneration | None:
    """Return a clock whose first neuron spikes once, at the first input; a twin keeps it from a second spike."""
    sums = inputs.sum(2, dtype=clock.tonic.dtype)
    onset = sums.gather(0, (sums != 0).float().argmax(0)[None])[0]
    usual = float(onset.quantile(0.1))
    if usual <= 0:  # inputs of both signs, or none
        return None
    rows = functional.pad(clock.inputs, [0, 0, 0, 1])
    rows[0] = rows[-1] = 2 * float(clock.tonic[0]) / usual
    stop = 4 * float(rows[0, 0] * sums.max())
    joined = functional.pad(clock.recurrent, [0, 1, 0, 1])
    joined[0, 1:] = joined[-1, :-1] = -stop
    joined[0, 0] = 0.0
    return simulate_first("clock", neuron, inputs, rows, joined, rows.new_zeros(len(rows)))


# -- gates and latches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boundaries:
    """Rows whose membrane is ``middle`` half-way between two samples at a step."""

    weight: Tensor  # (k, D)
    middle: Tensor  # (k,)
    samples: Tensor  # (k,), the first of the two
    steps: Tensor  # (k,)


def draw_boundaries(
    trace: Callable[[Tensor, Tensor], Tensor], labels: Tensor, threshold: float, *, count: int, generator: torch.Generator
) -> Boundaries:
    """Draw boundaries between a sample and the nearest of another class among a few, each at a random step.

    ``trace`` gives what the membrane holds of the inputs of samples (k,) at steps (k,), (k, D); labels are (T, n), at each step.
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
    boundaries: Boundaries, excitability: Excitability, traces: Tensor, *, has_bias: bool = True, hold: Tensor | float = _HOLD
) -> tuple[Tensor, Tensor]:
    """Return tonic currents (k,) and weights (k, P) from a clock, such that each row reaches its threshold at its boundary.

    ``traces`` (k, P) are what a row's membrane holds there of each neuron of the clock, through a weight of one.  ``hold`` is the
    tonic inhibition in thresholds, for each row (k,) or for all.  Rows without a bias get it from the clock, whose neurons take
    turns, so that their tonic currents are zero.
    """
    steady = excitability.kernel.cumsum(0)[boundaries.steps] if has_bias else traces.sum(1)
    tonic = -torch.as_tensor(hold).to(boundaries.weight) * excitability.threshold / excitability.kernel.sum()
    # The latest neuron that has left a trace there opens the gate no earlier than it must.
    useful = traces >= _MIN_EFFECT_SHARE * traces.amax(1, keepdim=True)
    phase = traces.shape[1] - 1 - useful.flip(1).float().argmax(1)
    here = traces.gather(1, phase[:, None])
    missing = excitability.threshold - boundaries.middle - tonic * steady
    weight = torch.where(here > 0, missing[:, None] / here.clamp_min(1e-12), torch.zeros_like(here))
    release = torch.zeros_like(traces).scatter(1, phase[:, None], weight)
    tonic = tonic.expand(len(traces))
    return (tonic, release) if has_bias else (torch.zeros_like(tonic), release + tonic[:, None])


def add_latches(seen: RecurrentSite, clock: FirstGeneration, generator: torch.Generator) -> FirstGeneration | None:
    """Return a clock with latches behind it, for neurons with tonic currents and autapses; None if none distinguishes samples."""
    steps, excitability = len(clock.spikes), seen.site.excitability
    inputs, labels = seen.inputs.expand(steps, -1, -1), seen.labels.expand(steps, -1)
    count = max(1, round(_LATCHES * seen.recurrent.width))
    boundaries = draw_boundaries(
        partial(excitability.trace, inputs), labels, excitability.threshold, count=count, generator=generator
    )
    if len(boundaries.weight) == 0:
        return None
    blocks = split_in_blocks(inputs.shape[1], len(inputs), max(len(boundaries.weight), len(clock), inputs.shape[2]))
    lowest, highest = _find_range(excitability, inputs, boundaries.weight, blocks)
    closed = (highest / excitability.threshold + _SPARE).clamp_min(1 + _SPARE)
    tonic, release = gate_weights(boundaries, excitability, clock_traces(clock, boundaries, excitability), hold=closed)
    own = _HELD * (2 * excitability.threshold - tonic - lowest.clamp_max(0))
    rows = Candidates(boundaries.weight, tonic, before=release, autapses=own)
    currents = (clock.drive(samples, inputs)(rows) for samples in blocks)
    spikes = torch.cat([record_spikes(seen.recurrent.neuron, each, own) for each in currents], 1)
    share = (spikes[-1] != 0).float().mean(0)
    useful = ((share > _MIN_SAMPLE_SHARE) & (share < 1 - _MIN_SAMPLE_SHARE)).nonzero()[:, 0]
    if len(useful) == 0:
        return None
    together = torch.cat([clock.spikes.expand(-1, spikes.shape[1], -1), spikes[:, :, useful]], 2)
    return FirstGeneration("clock", *clock.join_rows(rows.take(useful)), together, len(useful))


def clock_traces(clock: FirstGeneration, boundaries: Boundaries, excitability: Excitability) -> Tensor:
    """Return what a membrane holds of each neuron of a clock at the boundaries' steps, through a weight of one, (k, P)."""
    delayed = clock.delayed[:, :, : len(clock) - clock.latches]
    return excitability.trace(delayed, boundaries.samples.clamp_max(delayed.shape[1] - 1), boundaries.steps)


def _find_range(excitability: Excitability, inputs: Tensor, weight: Tensor, blocks: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Return the lowest current and the highest membrane (k,) that the inputs (T, n, D) alone give to rows (k, D)."""
    lowest, highest = torch.full_like(weight[:, 0], torch.inf), torch.full_like(weight[:, 0], -torch.inf)
    for samples in blocks:
        driven = functional.linear(inputs[:, samples].to(weight), weight)
        lowest = torch.minimum(lowest, driven.amin((0, 1)))
        highest = torch.maximum(highest, excitability.respond(driven).amax((0, 1)))
    return lowest, highest
