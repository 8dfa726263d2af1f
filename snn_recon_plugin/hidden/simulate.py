"""Simulation of candidates: their spikes, filtered as the temporary readout filters.

If the neuron's current is the synapse's output, candidates run outside the net in chunks, on inputs recorded once.  If a stage
such as pooling lies between, they run in the net in place of the layer's rows, one layer width at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedModuleError
from ..networks import HiddenLayer, StoredBatch, Values, library_of, trying
from .filtered_spikes import SpikeSums, record_filtered
from .hidden_task import HiddenTask, check_samples, take_first_batches
from .layer_inputs import collect_inputs, find_layout, record_first_calls, record_first_currents, record_means
from .neuron import shape_unit_values
from .site import Candidates, count_groups, weight_of

CHUNK_BYTES = 256 * 2**20  # bound on the membranes and spikes in memory at a time
# Largest share of features that rounding may change by a spike.  An autocast of 16 bits changed 0.015, and rows that depend on each
# other 0.1 or more (tests/end_to_end/test_precision.py, tests/hidden/test_rebuild.py).
_MAX_FLIPPED = 0.05

# About nine pooled positions of a convolution, by the number of axes: a readout needs to know roughly where a feature is.
_POOLS: dict[int, tuple[Callable[[Tensor, int], Tensor], int]] = {
    1: (functional.adaptive_avg_pool1d, 9),
    2: (functional.adaptive_avg_pool2d, 3),
    3: (functional.adaptive_avg_pool3d, 2),
}


@dataclass(frozen=True)
class Emitted:
    """Spikes of candidates, filtered by K filters; G pooled positions of a convolution, else 1."""

    features: Tensor  # (n * K, M, G), all rows of a sample together
    rate: Tensor  # (M,), spikes a step and sample (and position)

    def take(self, index: Tensor) -> Emitted:
        """Return the candidates ``index``, in that order."""
        return Emitted(self.features[:, index], self.rate[index])

    @staticmethod
    def join(parts: Sequence[Emitted]) -> Emitted:
        """Concatenate several sets of candidates."""
        return Emitted(torch.cat([part.features for part in parts], 1), torch.cat([part.rate for part in parts]))


@dataclass(frozen=True)
class Simulator:
    """Inputs that a layer was found to have, and a function that runs candidates on them."""

    run: Callable[[Candidates], Emitted]
    inputs: Tensor  # (k, *), of the samples that take part, averaged over time
    over_time: Tensor | None  # (T, k, D), or (1, k, D) if constant; None if candidates run in the net
    binary: bool  # whether all inputs are 0 or 1
    compared: Tensor | None = None  # (T, m, D) or (1, m, D), inputs of the samples that compare layers, if they were asked for


def make_simulator(task: HiddenTask, layer: HiddenLayer, compared: Tensor | None = None) -> Simulator:
    """Return a simulator of candidate rows: the neuron alone on recorded inputs where that gives the net's spikes, or the net.

    The layers below have their new values.  ``compared`` (m,) are samples that compare layers.
    """
    layout, steps = None, task.temporary.num_steps
    if isinstance(layer.synapse, nn.Linear):
        currents = record_first_currents(task, layer)
        if len(currents) != steps:
            raise UnsupportedModuleError(
                f"its neuron runs {len(currents)} times in {steps} steps",
                "a neuron of its own for every layer, run once a step",
                "give each layer its own neuron, or pass hidden='rescale'",
            )
        layout = find_layout(layer.synapse, record_first_calls(task, layer), currents)
    if layout is None:
        means, binary = record_means(task, layer)
        if isinstance(layer.synapse, nn.Linear) and means.dim() > 2:
            raise UnsupportedModuleError(
                f"its nn.Linear runs over {means.shape[1:-1].numel()} places of a sample, such as tokens",
                "one input of the layer a sample and step",
                "pass hidden='rescale'",
            )
        check_samples(layer, len(means), len(task.targets))
        return Simulator(partial(_run_in_net, task, layer), means[task.used_samples.to(means.device)], None, binary)
    subsets = [task.used_samples, *([] if compared is None else [compared])]
    over_time, *others = (_drop_copies(inputs) for inputs in collect_inputs(task, layer, layout, subsets))
    run = partial(run_alone, layer, over_time, task.temporary.filters)
    binary, mean = over_time.dtype is torch.uint8, over_time.mean(0, dtype=torch.float32)
    return Simulator(run, mean, over_time, binary, others[0] if others else None)


def _drop_copies(inputs: Tensor) -> Tensor:
    """Return inputs ``[1, n, *]`` of ``[T, n, *]`` that are constant, as where one call takes copies of an image for all steps."""
    return inputs[:1] if all(torch.equal(step, inputs[0]) for step in inputs[1:]) else inputs


def run_alone(layer: HiddenLayer, over_time: Tensor, filters: Tensor, candidates: Candidates) -> Emitted:
    """Run a layer's neuron on the candidates' currents outside the net, a chunk of candidates at a time.

    Inputs ``over_time`` are (T, n, D), or (1, n, D) if constant, and filters (K, T).
    """
    neuron, steps = layer.neuron, filters.shape[1]
    inputs = over_time.to(weight_of(layer.synapse).dtype)
    chunk = max(1, CHUNK_BYTES // (16 * steps * inputs.shape[1]))  # bounds a neuron that runs all steps in one call

    def run(part: Candidates) -> Emitted:
        currents = functional.linear(inputs, part.weight.to(inputs), None if part.bias is None else part.bias.to(inputs))
        return emit(neuron, currents.expand(steps, -1, -1), filters, part.unit_values)

    parts = torch.split(torch.arange(len(candidates), device=inputs.device), chunk)
    return Emitted.join([run(candidates.take(part)) for part in parts])


def emit(
    neuron: nn.Module, currents: Tensor, filters: Tensor, values: Mapping[str, Tensor] | None, autapses: Tensor | None = None
) -> Emitted:
    """Run units of a neuron alone on currents (T, n, M), with parameters (M,) that each has for itself, by name.

    Units of a recurrent neuron have weights ``autapses`` (M,) from themselves.
    """
    sums = SpikeSums(filters)
    with trying({(neuron, name): value for name, value in (values or {}).items()}):
        library_of(neuron).each_step(neuron, currents, sums.add, autapses)
    filtered = sums.finish()
    return Emitted(filtered.features[..., None], filtered.rate)


def _run_in_net(task: HiddenTask, layer: HiddenLayer, candidates: Candidates) -> Emitted:
    """Run candidates in the net in place of the layer's rows, once for each layer width of candidates."""
    synapse, rows_each = layer.synapse, task.temporary.rows_each
    axes = weight_of(synapse).dim() - 2
    parts, numbers = [], []
    for index, fresh in assign_rows(candidates, len(weight_of(synapse)), count_groups(synapse)):
        rows = candidates.take(index)
        bias = {} if rows.bias is None else {(synapse, "bias"): rows.bias}
        with trying({(synapse, "weight"): rows.weight, **bias, **shape_unit_values(layer.neuron, rows.unit_values, axes)}):
            emitted = run_layer(task, layer, task.batches)
        each = emitted.features.reshape(-1, rows_each, *emitted.features.shape[1:])
        used = each[task.used_samples.to(each.device)].flatten(0, 1)
        parts.append(Emitted(used, emitted.rate).take(fresh.nonzero()[:, 0]))
        numbers.append(index[fresh])
    joined = Emitted.join(parts)
    return joined if candidates.groups is None else joined.take(torch.cat(numbers).argsort())


def run_layer(task: HiddenTask, layer: HiddenLayer, batches: Sequence[StoredBatch]) -> Emitted:
    """Return a layer's filtered spikes in the net as it is."""
    own = layer.weights
    weight: Tensor = getattr(own.module, own.weight or "weight")
    filtered, steps = record_filtered(task, layer, batches, _pool_positions), task.temporary.num_steps
    shape = filtered.shape
    # A convolution's positions come behind the rows, unless the net has summed over them.
    if filtered.steps != steps or shape[1:2] != (len(weight),) or len(shape) not in (2, weight.dim()):
        raise UnsupportedModuleError(
            f"its neuron emits {list(shape)} {filtered.steps} times, not a value for each row",
            f"(samples, {len(weight)} rows) or, for a convolution, its positions behind these, {steps} times",
            "pass hidden='rescale', which keeps the layers' own weights",
        )
    return Emitted(filtered.features, filtered.rate)


def _pool_positions(features: Tensor) -> Tensor:
    """Return features (n, M, G): a convolution's positions (n, M, *) averaged on a grid; G is 1 without positions."""
    axes = features.dim() - 2
    if axes == 0:
        return features[:, :, None]
    pool, size = _POOLS[axes]
    return pool(features, size).flatten(2)


def check_together(task: HiddenTask, layer: HiddenLayer, values: Values, expected: Emitted, rows: Tensor) -> None:
    """Refuse selected rows whose spikes differ together in the net from those of each candidate alone."""
    few = take_first_batches(task.batches)
    with trying(values):
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


def assign_rows(candidates: Candidates, width: int, groups: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Assign candidates to the rows of a layer, in rounds; those of each group stay within its rows.

    Yields the candidate in each row, (width,), and whether it is new, (width,); leftover rows repeat candidates.
    """
    device, each = candidates.weight.device, width // groups
    group_of = torch.zeros(len(candidates), dtype=torch.long, device=device) if candidates.groups is None else candidates.groups
    members = [(group_of == group).nonzero()[:, 0] for group in range(groups)]
    for start in range(0, max(map(len, members)), each):
        places = torch.arange(start, start + each, device=device)
        filled = [some if len(some) else places.new_zeros(1) for some in members]
        index = torch.cat([some[places.clamp_max(len(some) - 1)] for some in filled])
        yield index, torch.cat([places < len(some) for some in members])
