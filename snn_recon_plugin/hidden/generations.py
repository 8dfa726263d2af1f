"""Recurrent layers built row by row, in generations: a neuron receives the inputs and the spikes of the generations before it.

The recurrent matrix is then block-triangular.  A candidate's spikes depend on nothing that is chosen with it, and a group lasso can
select candidates as in a feed-forward layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError
from ..networks.calls.spikes import FilteredSpikes
from .clock import CHUNK_UNITS, FirstGeneration, clock_traces, draw_boundaries, gate_weights
from .neuron import split_in_blocks
from .recurrent import RecurrentSite
from .samplers import SAMPLERS, Sampler, WitnessOptions, auto, draw_candidates, get_sampler, list_pool, traces
from .select import Selection, SelectionProgram, find_usable, select
from .simulate import emit
from .site import Candidates, LayerSite

_CANDIDATES_FACTOR = 2  # candidates of a built layer, for each one of a feed-forward layer of its width
_ROUGH_STEPS = 50  # proximal steps of the first selection, which only counts kinds
_AUTAPSE = 1.5  # largest weight from a neuron to itself, in units of the rheobase

_Kind: TypeAlias = Callable[[int, torch.Generator], Candidates]  # draws a number of candidates


@dataclass(frozen=True)
class Generations:
    """A built layer."""

    first: FirstGeneration
    rows: Candidates  # of the second generation, in order of their kinds
    emitted: FilteredSpikes  # filtered spikes of these rows, each simulated by itself
    selection: Selection
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
    seen: RecurrentSite,
    first: FirstGeneration,
    options: WitnessOptions,
    *,
    program: SelectionProgram,
    filters: Tensor,
    generator: torch.Generator,
) -> Generations | None:
    """Select candidates for the second generation of a layer whose first one is given.

    One half has equal numbers of each kind, the other half as many as were selected of the first.  ``filters`` (K, T) are those of
    the temporary readout.  None if too few candidates differ between samples.
    """
    kinds = _list_kinds(seen, first, get_sampler(options.witnesses))
    needed = seen.recurrent.width - len(first)
    count = _CANDIDATES_FACTOR * options.count_candidates(needed)
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
            pool.append((rows, _simulate_rows(seen, first, rows, filters)))
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
        selection = select(program if last else replace(program, max_steps=_ROUGH_STEPS), emitted)
        chosen = selection.order[:needed]
        counts = candidates.take(chosen).count_kinds()
        shares = {kind: counts[kind] / len(chosen) for kind in kinds if kind in counts}
    assert candidates.kinds is not None
    places = torch.tensor([list(kinds).index(kind) for kind in candidates.kinds], device=usable.device)
    chosen = chosen[places[chosen].argsort(stable=True)]
    return Generations(first, candidates.take(chosen), emitted.take(chosen), selection, simulated, dict(dropped))


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
    """Draw rows of a sampler, which receive the inputs, and the spikes of a reservoir or of latches.

    Neurons of a clock do the same for all samples.  A user's own function draws rows of the layer's inputs alone.
    """
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
    response, steps = site.excitability.response, len(first.spikes)
    unit = response.threshold / float(response.kernel.sum())  # current that a latch counts for among the inputs
    inputs, latches = seen.inputs.expand(steps, -1, -1), first.delayed[:, :, len(first) - first.latches :]

    def trace(samples: Tensor, at: Tensor) -> Tensor:
        traces = response.trace(inputs, samples, at)
        return torch.cat([traces, unit * response.trace(latches, samples, at)], 1) if first.latches else traces

    labels = seen.labels.expand(steps, -1)
    boundaries = draw_boundaries(trace, labels, response.threshold, count=count, generator=generator)
    tonic, release = gate_weights(boundaries, response, clock_traces(first, boundaries, response), has_bias=site.has_bias)
    values = None if site.leak is None else {site.leak[0]: torch.full_like(tonic, site.leak[1])}
    weight, latch_weights = torch.split(boundaries.weight, [seen.inputs.shape[2], first.latches], 1)
    before = torch.cat([release, unit * latch_weights], 1)
    return Candidates(weight, tonic, values, kinds=("gates",) * len(tonic), before=before, autapses=torch.zeros_like(tonic))


def _simulate_rows(seen: RecurrentSite, first: FirstGeneration, rows: Candidates, filters: Tensor) -> FilteredSpikes:
    """Simulate candidates of a second generation with the layer's own neuron, a block of samples and candidates at a time."""
    samples, each, units = seen.inputs.shape[1], len(filters), min(CHUNK_UNITS, len(rows))
    parts = torch.split(torch.arange(len(rows), device=seen.inputs.device), units)
    features = torch.empty(samples * each, len(rows), device=seen.inputs.device)
    rate = torch.zeros(len(rows), dtype=torch.float64, device=seen.inputs.device)
    for block in split_in_blocks(samples, len(first.spikes), max(units, len(first), seen.inputs.shape[2])):
        currents_of = first.drive(block, seen.inputs)
        for part in parts:
            some = rows.take(part)
            emitted = emit(seen.recurrent.neuron, currents_of(some), filters, values=some.unit_values, autapses=some.autapses)
            features[block.start * each : block.stop * each, part] = emitted.features
            rate[part] += emitted.rate * ((block.stop - block.start) / samples)
    return FilteredSpikes(features, rate.float(), filters.shape[1])
