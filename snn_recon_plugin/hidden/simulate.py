"""Simulation of candidates: their spikes, filtered as the temporary readout filters.

A layer runs outside the net on inputs recorded once, if what lies between its synapse and its neuron could be followed.
Otherwise candidates run in the net in place of the layer's rows, one layer width at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..networks.calls.record import StoredBatch, first_batches
from ..networks.private.parameters import Values, with_values
from ..networks.structure.layers import HiddenLayer
from .filtered_spikes import record_filtered
from .hidden_task import FEW_SAMPLES, HiddenTask, check_samples
from .layer_alone import Emitted, LayerAlone
from .layer_inputs import collect_inputs, find_layout, record_first_calls, record_first_currents, record_means
from .neuron import shape_unit_values
from .site import Candidates, weight_of
from .stage import follow_stages

# Largest share of features that rounding may change by a spike.  An autocast of 16 bits changed 0.015, and rows that depend on each
# other 0.1 or more (tests/end_to_end/test_precision.py, tests/hidden/test_rebuild.py).
_MAX_FLIPPED = 0.05


@dataclass(frozen=True)
class Simulator:
    """Inputs that a layer was found to have, and a function that runs candidates on them."""

    run: Callable[[Candidates], Emitted]
    inputs: Tensor  # (k, *), of the samples that take part, averaged over time
    over_time: Tensor | None  # (T, k, D), or (1, k, D) if constant; None if candidates run in the net
    binary: bool  # whether all inputs are 0 or 1
    alone: LayerAlone | None = None  # the layer on these inputs; None if candidates run in the net
    compared: LayerAlone | None = None  # the layer on the samples that compare layers, if they were asked for

    @property
    def norm(self) -> nn.Module | None:
        """The norm between synapse and neuron, whose values may be written; None if candidates run in the net."""
        return None if self.alone is None else self.alone.stage.norm


def make_simulator(task: HiddenTask, layer: HiddenLayer, compared: Tensor | None = None) -> Simulator:
    """Return a simulator of candidate rows: the layer alone on recorded inputs where that gives the net's currents, or the net.

    The layers below have their new values.  ``compared`` (m,) are samples that compare layers.
    """
    steps = task.temporary.num_steps
    (stage,) = follow_stages(task.net, task.batches[0], [layer], task.forward)
    currents = record_first_currents(task, layer)
    if len(currents) != steps:
        raise UnsupportedModuleError(
            f"its neuron runs {len(currents)} times in {steps} steps",
            "a neuron of its own for every layer, run once a step",
            "give each layer its own neuron, or pass hidden='rescale'",
        )
    layout = None if stage.joined else find_layout(layer.synapse, stage, record_first_calls(task, layer), currents)
    if layout is None:
        means, binary = record_means(task, layer)
        if means.dim() > 2:
            raise UnsupportedModuleError(
                f"its nn.Linear runs over {means.shape[1:-1].numel()} places of a sample, such as tokens",
                "one input of the layer a sample and step",
                "pass hidden='rescale'",
            )
        check_samples(layer, len(means), len(task.targets))
        return Simulator(partial(_run_in_net, task, layer), means[task.used_samples.to(means.device)], None, binary)
    subsets = [task.used_samples, *([] if compared is None else [compared])]
    recorded = [_drop_copies(inputs) for inputs in collect_inputs(task, layer, layout, subsets)]
    alone, *others = (LayerAlone(layer, stage, inputs, task.temporary.filters) for inputs in recorded)
    inputs = alone.inputs
    binary, mean = inputs.dtype is torch.uint8, inputs.mean(0, dtype=torch.float32)
    return Simulator(alone.run, mean, inputs, binary, alone, others[0] if others else None)


def _drop_copies(inputs: Tensor) -> Tensor:
    """Return inputs ``[1, n, *]`` of ``[T, n, *]`` that are constant, as where one call takes copies of an image for all steps."""
    return inputs[:1] if all(torch.equal(step, inputs[0]) for step in inputs[1:]) else inputs


def _run_in_net(task: HiddenTask, layer: HiddenLayer, candidates: Candidates) -> Emitted:
    """Run candidates in the net in place of the layer's rows, once for each layer width of candidates."""
    synapse, rows_each, width, parts = layer.synapse, task.temporary.rows_each, len(weight_of(layer.synapse)), []
    for start in range(0, len(candidates), width):
        numbers = torch.arange(start, start + width, device=candidates.weight.device)
        rows = candidates.take(numbers.clamp_max(len(candidates) - 1))  # the last one fills the rows that are left over
        bias = {} if rows.bias is None else {(synapse, "bias"): rows.bias}
        with with_values({(synapse, "weight"): rows.weight, **bias, **shape_unit_values(layer.neuron, rows.unit_values)}):
            emitted = run_layer(task, layer, task.batches)
        each = emitted.features.reshape(-1, rows_each, width)
        used = each[task.used_samples.to(each.device)].flatten(0, 1)
        parts.append(Emitted(used, emitted.rate).take(numbers[numbers < len(candidates)] - start))
    return Emitted.join(parts)


def run_layer(task: HiddenTask, layer: HiddenLayer, batches: Sequence[StoredBatch]) -> Emitted:
    """Return a layer's filtered spikes in the net as it is."""
    own = replace(layer, norm=None).weights
    weight: Tensor = getattr(own.module, own.weight or "weight")
    filtered, steps = record_filtered(task.net, layer, batches, task.forward, task.temporary.filters), task.temporary.num_steps
    if filtered.steps != steps or filtered.shape[1:] != (len(weight),):
        raise UnsupportedModuleError(
            f"its neuron emits {list(filtered.shape)} {filtered.steps} times, not a value for each row",
            f"(samples, {len(weight)} rows) {steps} times",
            "pass hidden='rescale', which keeps the layers' own weights",
        )
    return Emitted(filtered.features, filtered.rate)


def check_together(task: HiddenTask, layer: HiddenLayer, values: Values, expected: Emitted, rows: Tensor) -> None:
    """Refuse selected rows whose spikes differ together in the net from those of each candidate alone."""
    few = first_batches(task.batches, FEW_SAMPLES)
    with with_values(values):
        found = run_layer(task, layer, few).take(rows).features
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
