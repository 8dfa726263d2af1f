"""Recurrent layers built in generations, and the choice between them and a layer's own weights.

In a built layer a neuron receives the inputs and the spikes of the generations before it, so the recurrent matrix is
block-triangular.  A candidate's spikes depend on nothing that is chosen with it, and a group lasso can select candidates as in a
feed-forward layer.  Held-out samples choose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..convex import Problem
from ..errors import DataError, SilentLayerError, UnsupportedModuleError
from ..networks.calls.calls import FilteredSpikes
from ..networks.private.parameters import Values, with_values
from .clock import (
    CHUNK_UNITS,
    FirstGeneration,
    add_latches,
    clock_traces,
    draw_boundaries,
    gate_weights,
    make_clock,
    simulate_first,
)
from .gains import RATE_ABOVE, TIE_LOSS_RATIO, TRIED_LOSS_RATIO, make_driven_layer, measure_losses, settle_gain
from .hidden_task import HiddenTask, LayerDecision, LayerGain
from .neuron import average_units, place_unit_values
from .recurrent import RecurrentLayer, RecurrentSite, list_draws, make_recurrent_site
from .samplers import SAMPLERS, LeakChoice, auto, draw_candidates, get_sampler, list_pool, traces
from .select import describe_selection, find_usable, make_problem, select
from .simulate import check_together, drop_copies, emit_rows
from .site import Candidates, LayerSite, Sampler

_CANDIDATES_FACTOR = 2  # candidates of a built layer, for each one of a feed-forward layer of its width
_AUTAPSE = 1.5  # largest weight from a neuron to itself, in units of the rheobase

_Kind: TypeAlias = Callable[[int, torch.Generator], Candidates]  # draws a number of candidates
_ProblemOf: TypeAlias = Callable[[FilteredSpikes], Problem]  # of some candidates
# Held-out loss of a layer without latches above which these are tried, as a share of the loss of a bias alone.
_LATCH_LOSS_SHARE = 0.25


@dataclass(frozen=True)
class Generations:
    """A built layer."""

    first: FirstGeneration
    rows: Candidates  # of the second generation, in order of their kinds
    emitted: FilteredSpikes  # filtered spikes of these rows, each simulated by itself
    used: int  # candidates with a weight in the selection
    simulated: int
    dropped: dict[str, int]

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights from the inputs (N, D) and between the neurons (N, N), and their current at every step (N,)."""
        return self.first.join_rows(self.rows)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each neuron, (N,)."""
        return self.first.kinds + (self.rows.kinds or ())


def build_generations(
    task: HiddenTask, seen: RecurrentSite, first: FirstGeneration, problem_of: _ProblemOf, generator: torch.Generator
) -> Generations | None:
    """Select candidates for the second generation of a layer whose first one is given.

    One half has equal numbers of each kind, the other half as many as were selected of the first.  ``problem_of`` makes the group
    lasso.  None if too few candidates differ between samples.
    """
    kinds = _list_kinds(seen, first, get_sampler(task.witnesses))
    needed = seen.recurrent.width - len(first)
    count = _CANDIDATES_FACTOR * task.count_candidates(needed)
    pool, simulated, dropped = list[tuple[Candidates, FilteredSpikes]](), 0, Counter[str]()
    shares = {kind: 1 / len(kinds) for kind in kinds}
    for last in (False, True):
        for kind, share in shares.items():
            try:
                rows = kinds[kind](max(1, round(share * count / 2)), generator)
            except DataError:  # samples do not differ for this kind
                continue
            if len(rows) == 0:
                continue
            simulated += len(rows)
            pool.append((rows, _simulate_rows(seen, first, rows, task.temporary.filters)))
        if not pool:
            return None
        candidates, emitted = Candidates.join([rows for rows, _ in pool]), FilteredSpikes.join([some for _, some in pool])
        pool.clear()  # all candidates are in memory once, not twice
        usable, others = find_usable(emitted)
        dropped.update(others)
        if len(usable) < len(candidates):
            candidates, emitted = candidates.take(usable), emitted.take(usable)
        pool.append((candidates, emitted))
        if last and len(usable) < needed:
            return None
        order, used = select(problem_of(emitted), needed)
        chosen = order[:needed]
        counts = candidates.take(chosen).count_kinds()
        shares = {kind: counts[kind] / len(chosen) for kind in kinds if kind in counts}
    assert candidates.kinds is not None
    places = torch.tensor([list(kinds).index(kind) for kind in candidates.kinds], device=usable.device)
    chosen = chosen[places[chosen].argsort(stable=True)]
    return Generations(first, candidates.take(chosen), emitted.take(chosen), used, simulated, dict(dropped))


def _list_kinds(seen: RecurrentSite, first: FirstGeneration, sampler: Sampler) -> dict[str, _Kind]:
    kinds: dict[str, _Kind] = {}
    if first.kind == "clock":
        kinds["gates"] = partial(_draw_gates, seen, first)
    for kind, draw in list_pool(sampler, seen.site).items():
        kinds[kind] = partial(_draw_rows, seen, first, draw, kind)
    if seen.recurrent.autapses:
        kinds["autapses"] = partial(_draw_autapses, seen, first, sampler)
    return kinds


def _draw_rows(
    seen: RecurrentSite, first: FirstGeneration, sampler: Sampler, name: str, count: int, generator: torch.Generator
) -> Candidates:
    """Draw rows that receive inputs, and spikes of a reservoir or latches; a user's own function draws rows of inputs alone."""
    skipped = len(first) if sampler not in SAMPLERS.values() else 0 if first.kind == "reservoir" else len(first) - first.latches
    site = _add_spikes(seen, first.delayed[:, :, skipped:]) if skipped < len(first) else seen.site
    drawn = draw_candidates(sampler, site, count, generator)
    weight, before = torch.split(drawn.weight, [seen.inputs.shape[2], len(first) - skipped], 1)
    tonic = weight.new_zeros(len(weight)) if drawn.bias is None else drawn.bias
    return replace(
        drawn,
        weight=weight,
        bias=tonic,
        kinds=(name,) * len(weight),
        before=functional.pad(before, [skipped, 0]),
        autapses=torch.zeros_like(tonic),
    )


def _draw_autapses(
    seen: RecurrentSite, first: FirstGeneration, sampler: Sampler, count: int, generator: torch.Generator
) -> Candidates:
    rows = _draw_rows(seen, first, traces if sampler is auto else sampler, "autapses", count, generator)
    largest = _AUTAPSE * seen.site.excitability.rheobase
    return replace(rows, autapses=largest * torch.rand(len(rows), generator=generator).to(rows.weight))


def _add_spikes(seen: RecurrentSite, delayed: Tensor) -> LayerSite:
    """Return the site of rows that receive the inputs and the delayed spikes of a generation before."""
    over_time = seen.inputs.expand(len(delayed), -1, -1)
    mean = delayed.sum(0, dtype=seen.recurrent.weight.dtype) / len(delayed)
    inputs = torch.cat([seen.inputs.mean(0, dtype=mean.dtype), mean], 1)
    synapse = nn.Linear(inputs.shape[1], 1, bias=seen.site.has_bias, device="meta")
    variants = tuple(
        replace(one, synapse=synapse, inputs=inputs, over_time=over_time, before=delayed) for one in seen.site.variants
    )
    site = replace(seen.site, synapse=synapse, inputs=inputs, over_time=over_time, before=delayed, variants=variants)
    return site.split_steps(seen.steps)


def _draw_gates(seen: RecurrentSite, first: FirstGeneration, count: int, generator: torch.Generator) -> Candidates:
    variants = seen.site.split_variants()
    share = -(-count // len(variants))
    return Candidates.join([_draw_gates_of(variant, seen, first, share, generator) for variant in variants])


def _draw_gates_of(
    site: LayerSite, seen: RecurrentSite, first: FirstGeneration, count: int, generator: torch.Generator
) -> Candidates:
    """Draw gates of one leak: rows that receive the inputs and latches, and that a clock releases."""
    excitability, steps = site.excitability, len(first.spikes)
    unit = excitability.threshold / float(excitability.kernel.sum())  # current that a latch counts for among the inputs
    inputs, latches = seen.inputs.expand(steps, -1, -1), first.delayed[:, :, len(first) - first.latches :]

    def trace(samples: Tensor, at: Tensor) -> Tensor:
        traces = excitability.trace(inputs, samples, at)
        return torch.cat([traces, unit * excitability.trace(latches, samples, at)], 1) if first.latches else traces

    labels = seen.labels.expand(steps, -1)
    boundaries = draw_boundaries(trace, labels, excitability.threshold, count=count, generator=generator)
    tonic, release = gate_weights(boundaries, excitability, clock_traces(first, boundaries, excitability), has_bias=site.has_bias)
    values = None if site.leak is None else {site.leak[0]: torch.full_like(tonic, site.leak[1])}
    weight, latch_weights = torch.split(boundaries.weight, [seen.inputs.shape[2], first.latches], 1)
    before = torch.cat([release, unit * latch_weights], 1)
    return Candidates(weight, tonic, values, kinds=("gates",) * len(tonic), before=before, autapses=torch.zeros_like(tonic))


def _simulate_rows(seen: RecurrentSite, first: FirstGeneration, rows: Candidates, filters: Tensor) -> FilteredSpikes:
    """Simulate candidates of a second generation with the layer's own neuron, a block of samples and candidates at a time."""
    units, widest = min(CHUNK_UNITS, len(rows)), max(len(first), seen.inputs.shape[2])
    drive = partial(first.drive, inputs=seen.inputs)
    samples = seen.inputs.shape[1]
    return emit_rows(seen.recurrent.neuron, rows, drive, filters, samples=samples, units=units, widest=widest)


# -- the choice -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tried:
    loss: float  # held-out, of the temporary readout; infinite if the layer does not spike
    decision: LayerDecision
    values: Values


@dataclass(frozen=True)
class _Search:
    """A recurrent layer whose weights are to be chosen."""

    task: HiddenTask
    number: int  # of the layer
    seen: RecurrentSite
    leak: LeakChoice

    @property
    def recurrent(self) -> RecurrentLayer:
        return self.seen.recurrent

    def measure(self, values: Values) -> float:
        with with_values(values):
            return measure_losses(self.task, self.recurrent.layer, (1.0,))[0][0]


def choose_recurrent(task: HiddenTask, number: int, recurrent: RecurrentLayer, leak: LeakChoice) -> tuple[LayerDecision, Values]:
    """Return the weights that do best on samples that chose none; the own ones on a tie, or if nothing else spikes."""
    layer = recurrent.layer
    seen = make_recurrent_site(task, recurrent, leak.name)
    search = _Search(task, number, seen, leak)
    gain, gained = _try_gains(search)
    own = _Tried(gain.heldout_loss[gain.gain], gain, gained)
    tried = {"own weights": own, **_try_others(search, own)}
    spiking = [name for name, one in tried.items() if math.isfinite(one.loss)]
    if not spiking:
        found = f"hidden layer {layer.name!r}, which spikes neither at any gain of its weights nor with built ones"
        fix = "check the inputs' scale and the thresholds"
        raise SilentLayerError(found, "spikes of at least some of its neurons", fix)
    allowed = spiking if task.compares else [name for name in spiking if name != "own weights"] or spiking
    name = min(allowed, key=lambda one: tried[one].loss)
    if task.compares and TIE_LOSS_RATIO * tried[name].loss >= own.loss:
        name = "own weights"
    best = tried.pop(name)
    others = ", ".join(f"{one.loss:.3g} of {other}" for other, one in tried.items())
    parts = best.decision.reason, f"{name}: held-out loss {best.loss:.3g}" + (f" against {others}" if others else "")
    offered = leak.is_offered(drop_copies(seen.inputs), seen.site.fed_by_spikes)
    return replace(best.decision, reason="; ".join(part for part in parts if part), offers_leaks=offered), best.values


def _try_gains(search: _Search) -> tuple[LayerGain, Values]:
    """Return the layer's own weights with the better of a gain of one and one at a usual firing rate."""
    layer = search.recurrent.layer
    driven, losses = make_driven_layer(search.task, layer), {1.0: search.measure({})}
    gain = driven.find_gain(RATE_ABOVE)
    if gain is not None:
        losses[gain] = search.measure(driven.values(gain))
    return settle_gain(driven, losses, search.task.comparison.evaluate_nothing(), "recurrent")


def _try_others(search: _Search, own: _Tried) -> dict[str, _Tried]:
    """Return a layer built on a clock, one with latches too, and one built on a reservoir.

    Latches are tried only if a layer without them leaves much of the loss.  A reservoir is one half of the better of own and random
    weights, and is tried only if the loss of the own ones is near the built layers'.
    """
    recurrent, others = search.recurrent, dict[str, _Tried]()
    clock = _build_on(search, "clock")
    if clock is not None:
        others["a layer built on a clock"] = clock
        enough = _LATCH_LOSS_SHARE * search.task.comparison.evaluate_nothing()
        if recurrent.autapses and recurrent.tonic is not None and clock.loss > enough:
            latches = _build_on(search, "latches")
            if latches is not None:
                others["a layer built on a clock and latches"] = latches
    least = min((one.loss for one in others.values()), default=math.inf)
    fits_reservoir = isinstance(search.task.witnesses, str)  # a user's own function draws rows of the layer's inputs alone
    if fits_reservoir and recurrent.width > 1 and own.loss <= TRIED_LOSS_RATIO * least:
        _, values = min([(own.loss, own.values), *_try_draws(search)], key=lambda tried: tried[0])
        built = _build_on(search, "reservoir", values)
        if built is not None:
            others["a layer built on a reservoir"] = built
    return others


def _try_draws(search: _Search) -> Iterator[tuple[float, Values]]:
    """Yield the losses of random weights, infinite if no gain makes the layer spike, and the weights."""
    task, recurrent = search.task, search.recurrent
    sampler = traces if task.witnesses == "auto" else get_sampler(task.witnesses)
    count = task.count_candidates(recurrent.width) // recurrent.width
    generator = task.make_generator(search.number)
    for values, rate in list_draws(recurrent, search.seen.site, sampler, count=count, generator=generator):
        with with_values(values):
            driven = make_driven_layer(task, recurrent.layer)
            gain = driven.find_gain(rate)
            written = values if gain is None else {**values, **driven.values(gain)}
        yield math.inf if gain is None else search.measure(written), written


def _build_on(search: _Search, kind: str, values: Values | None = None) -> _Tried | None:
    """Return a layer built on a first generation of a kind.

    None if there is none, if too few candidates are usable, or if they do together what none does alone.
    """
    with average_units(search.recurrent.neuron, search.recurrent.width), suppress(DataError, UnsupportedModuleError):
        first = _make_first(search, kind, values or {})
        return None if first is None else _build_behind(search, first)
    return None


def _make_first(search: _Search, kind: str, values: Values) -> FirstGeneration | None:
    """Return a clock, a clock with latches, or a reservoir: the first half of the layer with some values."""
    recurrent, seen = search.recurrent, search.seen
    inputs = seen.inputs.expand(search.task.temporary.num_steps, -1, -1)
    if kind == "reservoir":
        with with_values(values):
            weights = recurrent.take(recurrent.width // 2)
        return simulate_first(kind, recurrent.neuron, inputs, *weights)
    clock = make_clock(
        recurrent.neuron,
        inputs,
        recurrent.width,
        tonic=recurrent.tonic is not None,
        autapses=recurrent.autapses,
        dtype=recurrent.weight.dtype,
    )
    if clock is None or kind == "clock":
        return clock
    return add_latches(seen, clock, search.task.make_generator(search.number))


def _build_behind(search: _Search, first: FirstGeneration) -> _Tried | None:
    """Return a layer whose other rows are selected behind a first generation."""
    task, recurrent = search.task, search.recurrent
    behind = torch.arange(len(first), recurrent.width)
    built = build_generations(task, search.seen, first, partial(make_problem, task), task.make_generator(search.number))
    if built is None:
        return None
    units = place_unit_values(recurrent.neuron, built.rows.unit_values, behind.to(recurrent.weight.device), recurrent.width)
    values = {**recurrent.make_values(*built.weights), **units}
    check_together(task, recurrent.layer, values, expected=built.emitted, rows=behind)
    decision = describe_selection(
        built.rows,
        search.leak,
        name=recurrent.layer.name,
        width=recurrent.width,
        used=built.used,
        simulated=built.simulated,
        dropped=built.dropped,
    )
    return _Tried(search.measure(values), replace(decision, kinds=dict(Counter(built.kinds))), values)
