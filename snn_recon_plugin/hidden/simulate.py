"""Simulation of candidates: their spikes, filtered as the temporary readout filters.

A layer runs outside the net on inputs recorded once.  What lies between its synapse and its neuron must be followed for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..networks.calls.calls import CallRecorder, FilteredSpikes, SpikeCounter, find_layout
from ..networks.libraries import library_of
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from .hidden_task import FEW_SAMPLES, HiddenTask, TemporaryReadout, check_samples
from .neuron import shape_unit_values, split_in_blocks
from .site import Candidates, own_rows, run_rows, weight_of
from .stage import Stage, follow_stage

OWN_BYTES = 256 * 2**20  # most currents of a layer's own rows
_FEW = 8  # samples on which a gain is tried
_LAYOUT_SAMPLES = 8, 64  # least and most samples on which the order of time and batch is determined
_LAYOUT_VALUES = 2**20  # most currents that are recorded for it, unless the least samples have more
# Largest share of features that rounding may change by a spike.  An autocast of 16 bits changed 0.015, and rows that depend on each
# other 0.1 or more (tests/end_to_end/test_precision.py, tests/hidden/test_rebuild.py).
_MAX_FLIPPED = 0.05


@dataclass(frozen=True)
class SimulatedLayer:
    """A layer outside its net: synapse, stage and neuron run on recorded inputs."""

    layer: HiddenLayer  # of the net
    stage: Stage  # between its synapse and its neuron
    inputs: Tensor  # (T, n, *), or (1, n, *) if constant; bytes if all are 0 or 1
    filters: Tensor  # (K, T), temporal filters of its spikes

    @property
    def means(self) -> Tensor:
        """Inputs averaged over time, (n, *)."""
        return self.inputs.mean(0, dtype=torch.float32)

    def run(self, candidates: Candidates) -> FilteredSpikes:
        """Return the spikes of candidates; a norm of the stage counts as the identity."""

        def drive(samples: slice) -> Callable[[Candidates], Tensor]:
            inputs = self.inputs[:, samples]
            return lambda rows: self._currents(rows, self.stage.run_without_norm, inputs).expand(self._steps, -1, -1)

        return emit_rows(self.layer.neuron, candidates, drive, self.filters, samples=self.inputs.shape[1], units=len(candidates))

    def own_currents(self) -> Tensor | None:
        """Return the currents (T, n, N) that the layer's own rows give, with its norm as it is; None if they are large."""
        rows = own_rows(self.layer.synapse)
        if 4 * len(rows) * self.inputs.shape[:2].numel() > OWN_BYTES:
            return None
        currents = self._currents(rows, self.stage.run, self.inputs)
        return currents.expand(self._steps, *currents.shape[1:])

    @cached_property
    def scales(self) -> bool:
        """True if a gain of the layer's weights is one of its currents."""
        return self.stage.scales(self.few_outputs)

    @property
    def few_outputs(self) -> Tensor:
        """Outputs (n, N) of the layer's own rows for a few samples."""
        return run_rows(self._typed(self.inputs[:1, :_FEW]).flatten(0, 1), own_rows(self.layer.synapse))

    def measure_norm(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return mean and variance (M,) of what the rows of candidates, without their bias, give the stage's norm."""
        values = self._currents(replace(candidates, bias=None), self.stage.run_to_norm, self.inputs).double().flatten(0, 1)
        return values.mean(0), values.var(0, correction=0)

    @property
    def _steps(self) -> int:
        return self.filters.shape[1]

    def _typed(self, inputs: Tensor) -> Tensor:
        return inputs.to(weight_of(self.layer.synapse).dtype)

    def _currents(self, rows: Candidates, stage: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Return what a stage makes of the synapse's outputs, (T, n, M)."""
        currents = stage(run_rows(self._typed(inputs).flatten(0, 1), rows))
        return currents.reshape(*inputs.shape[:2], *currents.shape[1:])


def emit_rows(
    neuron: nn.Module,
    rows: Candidates,
    drive: Callable[[slice], Callable[[Candidates], Tensor]],
    filters: Tensor,
    *,
    samples: int,
    units: int,
    widest: int = 0,
) -> FilteredSpikes:
    """Run candidates (M,), with their own parameters and autapses, alone on a block of samples and ``units`` of them at a time.

    ``drive`` gives the function from candidates to their currents (T, k, M) in some samples; ``widest`` is the size of a sample and
    step in the largest of its other tensors.
    """
    each, like = len(filters), rows.weight
    features = like.new_empty((samples * each, len(rows)), dtype=torch.float32)
    rate = like.new_zeros(len(rows), dtype=torch.float64)
    parts = torch.split(torch.arange(len(rows), device=like.device), units)
    for block in split_in_blocks(samples, filters.shape[1], max(units, widest)):
        currents_of = drive(block)
        for part in parts:
            emitted = _emit(neuron, rows.take(part), currents_of, SpikeCounter(filters))
            features[block.start * each : block.stop * each, part] = emitted.features
            rate[part] += emitted.rate * ((block.stop - block.start) / samples)
    return FilteredSpikes(features, rate.float(), filters.shape[1])


def _emit(
    neuron: nn.Module, rows: Candidates, currents_of: Callable[[Candidates], Tensor], counter: SpikeCounter
) -> FilteredSpikes:
    with with_values(shape_unit_values(neuron, rows.unit_values)):
        library_of(neuron).each_step(neuron, currents_of(rows), lambda spikes, _: counter.add(spikes), recurrent=rows.autapses)
    return counter.filtered()


def layout_of_inputs(task: HiddenTask, layer: HiddenLayer, stage: Stage) -> str | None:
    """Return the layout of a synapse's calls in which it and a stage make the currents of a few samples; None if no layout does."""
    weight, rows, steps = weight_of(layer.synapse), own_rows(layer.synapse), task.temporary.num_steps
    least, most = _LAYOUT_SAMPLES
    keep = min(most, max(least, _LAYOUT_VALUES // (steps * len(weight))))
    currents = task.recorder.first(1).record_currents(layer, keep=keep)
    if len(currents) != steps:
        found = f"its neuron runs {len(currents)} times in {steps} steps"
        fix = "give each layer its own neuron, or pass hidden='rescale'"
        raise UnsupportedModuleError(found, "a neuron of its own for every layer, run once a step", fix)
    calls = task.recorder.record_inputs(layer, task.recorder.batches[0])
    return find_layout(calls, currents, lambda inputs: stage.run(run_rows(inputs.to(weight).flatten(0, 1), rows)))


def collect_inputs(task: HiddenTask, layer: HiddenLayer, layout: str, subsets: Sequence[Tensor]) -> list[Tensor]:
    """Return a layer's inputs ``[T, k, *]``, or ``[1, k, *]`` if they are constant, of each of some sets of samples (k,)."""
    inputs, samples = task.recorder.collect_inputs(layer, layout, task.temporary.num_steps, subsets)
    check_samples(layer, samples, len(task.targets))
    return inputs


def simulate_layer(task: HiddenTask, layer: HiddenLayer, subsets: Sequence[Tensor]) -> list[SimulatedLayer]:
    """Return a layer on its inputs of each of some sets of samples (k,); refuse one whose currents in the net it does not have."""
    stage = follow_stage(task.recorder, layer)
    try:
        layout = None if stage.joined else layout_of_inputs(task, layer, stage)
    except (RuntimeError, ValueError, IndexError):  # functions that need the axes of a reshape, as a maxout
        layout = None
    fix = "pass hidden='rescale', which keeps the layer's weights"
    if layout is None:
        found = "its neuron's currents are not those of its synapse on one input a sample and step, as with tokens or a shortcut"
        raise UnsupportedModuleError(found, "functions of single steps alone between a plain nn.Linear and its neuron", fix)
    recorded = collect_inputs(task, layer, layout, subsets)
    layers = [SimulatedLayer(layer, stage, drop_copies(inputs), task.temporary.filters) for inputs in recorded]
    if not stage.is_by_row(layers[0].few_outputs):
        found = "functions between its synapse and its neuron join its rows, or have a value for each, as a layer norm does"
        raise UnsupportedModuleError(found, "functions that act on each row alone, and on all rows alike", fix)
    return layers


def drop_copies(inputs: Tensor) -> Tensor:
    """Return inputs ``[1, n, *]`` of ``[T, n, *]`` that are constant, as where one call takes copies of an image for all steps."""
    return inputs[:1] if all(torch.equal(step, inputs[0]) for step in inputs[1:]) else inputs


def run_layer(recorder: CallRecorder, layer: HiddenLayer, temporary: TemporaryReadout) -> FilteredSpikes:
    """Return a layer's spikes in the net as it is, filtered as a temporary readout does."""
    own = replace(layer, norm=None).weights
    weight: Tensor = getattr(own.module, own.weight or "weight")
    filtered = recorder.filter_spikes(layer, temporary.filters)
    (rows, *sizes), steps = filtered.features.shape, temporary.num_steps
    if filtered.steps != steps or sizes != [len(weight)]:
        found = f"its neuron emits {[rows // temporary.rows_each, *sizes]} {filtered.steps} times, not a value for each row"
        fix = "pass hidden='rescale', which keeps the layers' own weights"
        raise UnsupportedModuleError(found, f"(samples, {len(weight)} rows) {steps} times", fix)
    return filtered


def check_together(task: HiddenTask, layer: HiddenLayer, values: Values, *, expected: FilteredSpikes, rows: Tensor) -> None:
    """Refuse selected rows whose spikes differ together in the net from those of each candidate alone."""
    with with_values(values):
        found = run_layer(task.recorder.first(FEW_SAMPLES), layer, task.temporary).take(rows).features
    samples = task.used_samples
    samples = samples[samples < len(found) // task.temporary.rows_each]
    compared = task.temporary.find_rows(samples.to(found.device))
    if len(compared) == 0:  # none of these samples took part in the selection
        return
    alone = expected.features[: len(compared)]
    wrong = float(((found[compared] - alone).abs() > 1e-3 * float(alone.abs().max())).float().mean())
    if wrong > _MAX_FLIPPED:
        raise UnsupportedModuleError(
            "its neurons do something else with the selected rows than with each as a candidate, for "
            f"{100 * wrong:.0f} % of samples and neurons, so that they depend on more than their own row, as with a normalisation, "
            "quantised weights or spikes fed back by hand",
            "neurons that depend on their own row alone: no spikes fed back by hand, no stage between that treats rows unlike",
            "pass hidden='rescale', which keeps the layers' own weights",
        )
