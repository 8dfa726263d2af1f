"""How values follow from currents: an output neuron's temporal filter, measured on it, and a scale of each output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModuleError
from ..libraries import library_of
from ..private.workbench import same_values

_SEED = 20240229
# Currents far above usual thresholds: a membrane that resets within any sensible range does so under these.
_LARGE = 100.0
_IMPULSE_BYTES, _IMPULSES = 2**23, 16  # of the responses measured at a time, and their least number
_ALIKE = 1e-6  # of the largest response: smaller differences between units are rounding of common parameters
_SMALL = 1e-4  # of the lowest threshold: currents under which a neuron that resets never spikes
_ROUNDING = 1e-6  # of the largest value: a smaller offset is rounding
LEAST_ROWS = 5  # from which a scale is fitted: two of them always lie on a line


@dataclass(frozen=True)
class UnitResponses:
    """How units differ, for example by a leak each, in float64."""

    constant: Tensor  # [T, C], change of each unit's membrane under a constant unit current
    thresholds: Tensor  # [C], relative to their mean; ones for units that never spike

    def factors(self, weights: Tensor, *, spiking: bool) -> Tensor:
        """Return factors of the currents, ``[C]``, with which all units respond alike to constant currents.

        ``weights`` ``[T]`` are those of the steps in the score.  Spikes follow from the current over the threshold, whatever the
        leak.  Units of which one answers by less than nothing keep their currents.
        """
        if spiking:
            return self.thresholds
        gains = weights @ self.constant
        return gains.mean() / gains if bool((gains > 0).all()) else torch.ones_like(gains)


@dataclass(frozen=True)
class OutputResponse:
    """Affine response of a neuron's membrane to its input current, in float64; the mean over units that differ."""

    matrix: Tensor  # [T, T], membrane at step s (row) for a unit current at step t (column)
    rest: Tensor  # [T], membrane without any input
    affine: bool = True  # in any current; otherwise only up to the first reset
    units: UnitResponses | None = None  # None if all are the same

    def membranes(self, currents: Tensor) -> Tensor:
        """Compute the membranes ``[T, B, C]`` for currents ``[T, B, C]``, in the currents' dtype and on their device."""
        return torch.einsum("st,tbc->sbc", self.matrix.to(currents), currents) + self.rest.to(currents)[:, None, None]

    @property
    def lift(self) -> float:
        """Largest change of the membrane under a constant unit current."""
        return float(self.matrix.sum(1).abs().max())


def measure_response(name: str, neuron: nn.Module, num_steps: int, *, outputs: int, device: torch.device) -> OutputResponse:
    """Measure impulse responses; of a neuron that resets those to currents so small that it never reaches its threshold.

    The neuron runs in double precision if it can, since a certificate needs the digits.  It must agree with the neuron in single
    precision, which the network runs.  A neuron that isn't affine even for small currents is refused.
    """
    respond, library = partial(_respond, neuron, num_steps, outputs, device), library_of(neuron)
    single, single_rest, affine, _ = respond(torch.float32)
    size = None if affine else _SMALL * max(abs((library.threshold(neuron) or (1.0, 1.0))[0]), 1e-6)
    try:
        impulses, rest, explained, spiked = respond(torch.float64, size)
    except (RuntimeError, TypeError):  # a device without double precision, or a neuron that insists on single
        impulses, rest, explained, spiked = respond(torch.float32, size)
    if affine:
        widest = max(impulses.shape[2], single.shape[2])
        alike = same_values(*(one.expand(-1, -1, widest) for one in (impulses, single))) and same_values(rest, single_rest)
        impulses, rest = (impulses, rest) if alike else (single, single_rest)
    elif spiked or not explained:
        raise UnsupportedModuleError(
            f"the output neuron {name!r} ({type(neuron).__name__}), which "
            + ("spikes without an input" if spiked else "isn't affine in its input current even below its threshold"),
            "an output neuron that integrates its input linearly up to its threshold",
            f"use e.g. {library.integrator} there",
        )
    return _response(impulses, rest, _thresholds(neuron, outputs), affine)


def _response(impulses: Tensor, rest: Tensor, thresholds: Tensor, affine: bool) -> OutputResponse:
    """Summarise measured responses by their mean, and note how units differ if they do."""
    difference = float((rest - rest[..., :1]).abs().max())
    alike = impulses.shape[2] == 1 and difference <= _ALIKE * max(1.0, float(impulses.abs().max()))
    if alike and (affine or bool((thresholds == thresholds[0]).all())):
        return OutputResponse(impulses[..., 0], rest[..., 0], affine)
    units = UnitResponses(impulses.sum(1).expand_as(rest), thresholds)
    return OutputResponse(impulses.mean(-1), rest.mean(-1), affine, units)


def _thresholds(neuron: nn.Module, outputs: int) -> Tensor:
    """Read the threshold of each unit, relative to their mean, ``[C]`` float64; ones for a neuron that never spikes."""
    found = library_of(neuron).unit_thresholds(neuron)
    if found is None or found.numel() not in (1, outputs):
        return torch.ones(outputs, dtype=torch.float64)
    values = found.detach().double().cpu().flatten().expand(outputs)
    return values / values.mean() if bool((values > 0).all()) else torch.ones(outputs, dtype=torch.float64)


def _respond(
    neuron: nn.Module, steps: int, outputs: int, device: torch.device, dtype: torch.dtype, size: float | None = None
) -> tuple[Tensor, Tensor, bool, bool]:
    """Run the neuron on an impulse at each step, on nothing, and on random currents; all of one ``size``, if it is given.

    Return, in double precision, the membrane at a step for a unit current at a step, ``[T, T, C]``, or ``[T, T, 1]`` if all units
    respond alike; that without any input, ``[T, C]``; whether these explain the others; and whether a unit spiked.
    """
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(steps, 3, outputs, generator=generator, dtype=torch.float64)
    scales = _scales(neuron) if size is None else [0.3 * size, 0.1 * size, 0.03 * size]
    unit = 1.0 if size is None else size
    random = noise * torch.tensor(scales, dtype=torch.float64)[None, :, None]

    def run(currents: Tensor) -> tuple[Tensor, bool]:
        membranes, spiked = torch.empty_like(currents), torch.zeros((), dtype=torch.bool, device=device)
        steps = iter(membranes)

        def add(spikes: Tensor, membrane: Tensor) -> None:
            nonlocal spiked
            next(steps).copy_(membrane)
            spiked = spiked | (spikes != 0).any()

        library_of(neuron).each_step(neuron, currents.to(device=device, dtype=dtype), add)
        return membranes, bool(spiked)

    membranes, spiked = run(torch.cat([torch.zeros(steps, 1, outputs, dtype=torch.float64), random], 1))
    rest = membranes[:, 0]
    impulses, spiked_too = _measure_impulses(run, rest, unit, alike=True)
    if impulses is None:
        impulses, _ = _measure_impulses(run, rest, unit, alike=False)
        assert impulses is not None
    equation = "st,tbc->sbc" if impulses.shape[2] == 1 else "stc,tbc->sbc"
    expected = torch.einsum(equation, impulses[..., 0] if impulses.shape[2] == 1 else impulses, random)
    seen = membranes[:, 1:] - rest[:, None]
    # One size at a time: what a reset takes from a small membrane would drown in the rounding of a large one.
    explained = all(same_values(expected[:, number], seen[:, number]) for number in range(expected.shape[1]))
    return impulses, rest, explained, spiked or spiked_too


def _measure_impulses(
    run: Callable[[Tensor], tuple[Tensor, bool]], rest: Tensor, unit: float, alike: bool
) -> tuple[Tensor | None, bool]:
    """Return the responses to an impulse at each step, ``[T, T, C]``, and whether a unit spiked; a few steps at a time.

    ``alike`` expects that all units respond alike, and returns ``[T, T, 1]``, or None if they don't.
    """
    (steps, outputs), found, spiked = rest.shape, list[Tensor](), False
    difference, largest = 0.0, 1.0
    for part in torch.split(torch.arange(steps), max(_IMPULSES, _IMPULSE_BYTES // (8 * steps * outputs))):
        currents = torch.zeros(steps, len(part), outputs, dtype=torch.float64)
        currents[part, torch.arange(len(part))] = unit
        membranes, some = run(currents)
        answers = (membranes - rest[:, None]) / unit
        difference = max(difference, float((answers - answers[..., :1]).abs().max()))
        largest, spiked = max(largest, float(answers.abs().max())), spiked or some
        found.append(answers[..., :1].clone() if alike else answers)
    if alike and difference > _ALIKE * largest:
        return None, spiked
    return torch.cat(found, 1), spiked


def _scales(neuron: nn.Module) -> list[float]:
    """Return sizes of currents at which a reset shows: large, of order one, and ten times the neuron's threshold."""
    thresholds = library_of(neuron).threshold(neuron)
    lowest = 0.0 if thresholds is None else min(abs(value) for value in thresholds)
    return [_LARGE, 1.0, min(10.0 * lowest, _LARGE) or 1.0]


# -- scales ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scale:
    """``factor * value + offset``, as of a batch norm in evaluation mode; ``[C]`` float64 each, or ``[1]`` for all alike."""

    factor: Tensor  # never 0
    offset: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        """Return the weight ``[C, P]`` that a scaled layer amounts to, in its dtype."""
        return (self.factor.to(weight.device)[:, None] * weight.double()).to(weight)

    def bias(self, bias: Tensor) -> Tensor:
        """Return the bias ``[C]`` that a scaled layer amounts to, in its dtype."""
        return self.values(bias.double()).to(bias)

    def invert(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the layer's own weight and bias, float64, which scaled amount to the given ones."""
        factor, offset = self.factor.to(weight.device), self.offset.to(weight.device)
        return weight.double() / factor[:, None], None if bias is None else (bias.double() - offset) / factor

    def values(self, values: Tensor) -> Tensor:
        """Scale values ``[*, C]``, in their dtype."""
        return values * self.factor.to(values) + self.offset.to(values)

    def after(self, first: Scale | None) -> Scale:
        """Return the scale that is ``first``, then this one."""
        return self if first is None else Scale(self.factor * first.factor, self.factor * first.offset + self.offset)


def fit_scale(values: Tensor, changed: Tensor) -> Scale | None:
    """Return the scale from values ``[*, C]`` to changed ones; None if they follow by no factor other than 0 and no offset."""
    if values.shape != changed.shape or values[..., 0].numel() < LEAST_ROWS or not changed.is_floating_point():
        return None
    before, after = (each.flatten(0, -2).double().cpu() for each in (values, changed))
    centred = before - before.mean(0)
    factor = (centred * after).sum(0) / centred.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    offset, sizes = after.mean(0) - factor * before.mean(0), after.abs().amax(0)
    offset = torch.where(offset.abs() <= _ROUNDING * sizes, 0.0, offset)
    if not bool((torch.isfinite(factor) & (factor.abs() * centred.abs().amax(0) > _ROUNDING * sizes)).all()):
        return None
    expected = ((factor * before + offset) / sizes).to(changed.dtype)  # whose precision sets the tolerance
    return Scale(factor, offset) if same_values(expected, (after / sizes).to(changed.dtype)) else None


def fit_weights(values: Tensor, scores: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return weights of the steps, ``[T]`` float64, and an offset, ``[1]``, that turn values ``[T, B, C]`` into scores ``[B, C]``.

    None if there are none, or if there are too few scores to show it.
    """
    steps = len(values)
    if values.shape[1:] != scores.shape or scores.numel() < steps + LEAST_ROWS or not scores.is_floating_point():
        return None
    rows = nn.functional.pad(values.double().cpu().flatten(1).T, (0, 1), value=1.0)
    found = torch.linalg.lstsq(rows, scores.double().cpu().reshape(-1, 1), driver="gelsd").solution[:, 0]
    found = torch.where(found.abs() <= _ROUNDING * found.abs().max(), 0.0, found)
    if not bool((found[:steps] != 0).any()) or not same_values((rows @ found).to(scores.dtype), scores.cpu().flatten()):
        return None
    return found[:steps], found[steps:]
