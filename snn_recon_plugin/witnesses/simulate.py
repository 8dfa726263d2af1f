"""What candidates would emit: the layer's own neuron run on their currents, filtered as the readout filters.

Two ways lead to the same spikes, but for rounding; selected rows are run in the net once more before they are kept.  Where the
neuron's current is the synapse's output and nothing else, candidates are run outside the net, a chunk at a time; the layer's
input is recorded once.  Where a pooling or a normalisation lies between, the net itself is run with candidates in place of the
layer's rows, as many at a time as the layer is wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    StoredBatch,
    library_of,
    neuron_currents,
    replace_parameters,
    run_batch,
)
from snn_recon_plugin.networks.hooks import temporary_hooks

from .recorded import FEW, different, in_time, layout_of, mean_input, record_inputs, record_means
from .site import Candidates, groups_of
from .units import unit_names, unit_values

__all__ = ["Emitted", "Simulator", "emitted_in_net", "simulator_of"]

_BYTES = 256 * 2**20  # of the membranes and spikes that are there at a time
# Pools a convolution's positions, by the number of their axes, to about nine: where a feature is counts for as much.
_POOLS: dict[int, Callable[[Tensor], Tensor]] = {
    1: partial(functional.adaptive_avg_pool1d, output_size=9),
    2: partial(functional.adaptive_avg_pool2d, output_size=3),
    3: partial(functional.adaptive_avg_pool3d, output_size=2),
}


@dataclass(frozen=True)
class Emitted:
    """What candidates do on the samples.

    Args:
        features: (n * K, M, G), filtered over time by K filters, those of a sample in a row; G positions for a convolution, else 1.
        rate: (M,), spikes a step and sample (and position).
    """

    features: Tensor
    rate: Tensor

    def take(self, index: Tensor) -> Emitted:
        """Some of the candidates, in the order of ``index``."""
        return Emitted(self.features[:, index], self.rate[index])

    @staticmethod
    def join(parts: Sequence[Emitted]) -> Emitted:
        """All of several lots."""
        return Emitted(torch.cat([part.features for part in parts], 1), torch.cat([part.rate for part in parts]))


class Simulator(Protocol):
    """Runs candidates of one layer on the stored samples.

    Attributes:
        inputs: (n, *), what enters the synapse, averaged over time.
        fed_by_spikes: whether all of it is 0 or 1.
        samples: how many reach the layer, also those that take no part.
        over_time: (T, n, D) or, where it is the same at all steps, (1, n, D), what enters a Linear; None where it isn't recorded.
    """

    inputs: Tensor
    over_time: Tensor | None
    fed_by_spikes: bool
    samples: int

    def run(self, candidates: Candidates) -> Emitted:
        """What the candidates emit."""
        ...


def simulator_of(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, filters: Tensor, rows: Tensor
) -> Simulator:
    """The faster of the two ways that gives what the net would.

    Args:
        net: the net, held by ``preserved``, with what was decided for the layers below.
        batches: the samples.
        layer: a Linear or convolution whose neuron can be simulated alone.
        forward: how the net is called.
        filters: (K, T), of the temporary readout.
        rows: (k,) which of the samples take part.
    """
    if not isinstance(layer.synapse, nn.Linear):
        means, fed_by_spikes = record_means(net, batches, layer, forward, filters.shape[1])
        return _InNet(net, batches, layer, forward, means, fed_by_spikes, filters, rows)
    calls, fed_by_spikes = record_inputs(net, batches, layer, forward)
    shares = [batch.rows.stop - batch.rows.start for batch in batches]
    currents = neuron_currents(net, batches[:1], layer, forward, keep=FEW)
    steps = len(currents)
    if steps != filters.shape[1]:
        raise UnsupportedModuleError(
            f"hidden layer {layer.name!r}: its neuron runs {steps} times in {filters.shape[1]} steps",
            "a neuron of its own for every layer, run once a step",
            "give each layer its own neuron, or pass hidden='rescale'",
        )
    layout = layout_of(layer.synapse, calls[0], currents)
    if layout is None:
        parts = [mean_input(call, filters.shape[1], share) for call, share in zip(calls, shares, strict=True)]
        return _InNet(net, batches, layer, forward, torch.cat(parts), fed_by_spikes, filters, rows)
    still = layout == "still" or (layout == "steps" and all(len(different(call)) == 1 for call in calls))
    joined = [
        in_time(layout, call[:1] if still and layout == "steps" else call, 1 if still else steps)[:, :share]
        for call, share in zip(calls, shares, strict=True)
    ]
    return _Alone(layer, torch.cat(joined, 1), steps, fed_by_spikes, filters, rows)


def emitted_in_net(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, filters: Tensor, width: int
) -> Emitted:
    """What a layer of ``width`` rows emits in the net, with the parameters it has, on all samples of the batches.

    Raises:
        UnsupportedModuleError: its spikes are not ``[T, B, width, *]``, or come at another number of steps than the readout reads.
    """
    parts, adapter = list[_Filtered](), library_of(layer.neuron)
    whole = adapter.takes_sequences(layer.neuron)
    weight = layer.synapse.weight
    assert isinstance(weight, Tensor)
    ranks = (2, weight.dim())  # with the positions of a convolution, or without
    for batch in batches:
        seen = _Filtered(filters)
        parts.append(seen)

        def record(output: Any, seen: _Filtered = seen, share: int = batch.rows.stop - batch.rows.start) -> None:
            spikes = adapter.spikes(output)
            for step in spikes if whole else [spikes]:
                seen.add(step[:share])

        with temporary_hooks() as hooks:
            hooks.on_output(layer.neuron, record)
            run_batch(net, batch, forward)
        if seen.steps != filters.shape[1] or seen.shape[1:2] != (width,) or len(seen.shape) not in ranks:
            raise UnsupportedModuleError(
                f"hidden layer {layer.name!r}: its neuron emits {list(seen.shape)} {seen.steps} times, not a value for each row",
                f"(samples, {width} rows) or, for a convolution, its positions behind these, {filters.shape[1]} times",
                "pass hidden='rescale', which keeps the layers' own weights",
            )
    features = torch.cat([_pooled(part.features) for part in parts])
    return Emitted(features, torch.stack([part.counts for part in parts]).sum(0) / max(1, sum(part.places for part in parts)))


def _pooled(features: Tensor) -> Tensor:
    """(n, M, G): a convolution's positions (n, M, *) pooled to a grid; G = 1 without positions."""
    axes = features.dim() - 2
    if axes == 0:
        return features[:, :, None]
    return _POOLS[axes](features).flatten(2)


def _places(candidates: Candidates, width: int, groups: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rounds in which candidates take the places of a layer's rows, those of each group within its part of them.

    Yields:
        (width,) which candidate is in each row, and (width,) whether it was in none before: what is left over is filled up.
    """
    device, each = candidates.weight.device, width // groups
    belongs = torch.zeros(len(candidates), dtype=torch.long, device=device) if candidates.groups is None else candidates.groups
    members = [(belongs == group).nonzero()[:, 0] for group in range(groups)]
    for start in range(0, max(map(len, members)), each):
        places = torch.arange(start, start + each, device=device)
        filled = [some if len(some) else places.new_zeros(1) for some in members]
        index = torch.cat([some[places.clamp_max(len(some) - 1)] for some in filled])
        yield index, torch.cat([places < len(some) for some in members])


def _of_units(neuron: nn.Module, rows: Candidates) -> dict[tuple[nn.Module, str], Tensor]:
    """The neuron's parameters with those of the unit that each row takes along, as many rows as it has units."""
    if rows.units is None:
        return {}
    return unit_values(neuron, unit_names(neuron, len(rows)), rows.units)


class _Filtered:
    """Spikes (B, M, *) summed up step by step, as the temporary readout filters them.

    Attributes:
        counts: (M,), spikes at all steps, samples and positions.
        places: how many these are.
        shape: of the spikes of a step.
        steps: how many there were.
    """

    def __init__(self, filters: Tensor) -> None:
        self._filters: list[list[float]] = filters.T.tolist()
        self._sums: list[Tensor] = []
        self.shape, self.steps, self.places = torch.Size(), 0, 0

    @property
    def features(self) -> Tensor:
        """(B * K, M, *) float32, those of a sample in a row."""
        return self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums, 1).flatten(0, 1)

    def add(self, spikes: Tensor, membranes: Tensor | None = None) -> None:
        """The next step; the same shape as the last, and none beyond the filters' length, or it is not summed."""
        del membranes
        if not self._sums:
            self.shape = spikes.shape
            self._sums = [torch.zeros_like(spikes, dtype=torch.float32) for _ in self._filters[0]]
            self.counts = torch.zeros(spikes.shape[1:2], device=spikes.device)
        if self.steps < len(self._filters) and spikes.shape == self.shape:
            for total, weight in zip(self._sums, self._filters[self.steps], strict=True):
                if weight:
                    total.add_(spikes, alpha=weight)
            active = torch.ne(spikes, 0, out=torch.empty_like(spikes, dtype=torch.float32))  # booleans add up far more slowly
            self.counts += active.sum([axis for axis in range(active.dim()) if axis != 1])
            self.places += active.numel() // max(1, len(self.counts))
        self.steps += 1


class _Alone:
    """Candidates outside the net."""

    def __init__(self, layer: HiddenLayer, inputs: Tensor, steps: int, fed_by_spikes: bool, filters: Tensor, rows: Tensor) -> None:
        weight = layer.synapse.weight
        assert isinstance(weight, Tensor)
        self._neuron, self._steps, self._filters, self._dtype = layer.neuron, steps, filters, weight.dtype
        self._width = len(weight)
        self.samples, self.fed_by_spikes = inputs.shape[1], fed_by_spikes
        self.over_time: Tensor | None = inputs[:, rows.to(inputs.device)]
        self.inputs = self.over_time.float().mean(0)

    def run(self, candidates: Candidates) -> Emitted:
        assert self.over_time is not None
        adapter, samples = library_of(self._neuron), self.over_time.shape[1]
        # Spikes and membranes of a neuron that runs all steps in one call.  Units of their own parameters come all at a time.
        chunk = self._width if candidates.units is not None else max(1, _BYTES // (16 * self._steps * samples))
        features, rates = [], []
        inputs = self.over_time.to(self._dtype)
        for start in range(0, len(candidates), chunk):
            end = start + chunk if candidates.units is not None else min(start + chunk, len(candidates))
            part = candidates.take(torch.arange(start, end, device=inputs.device).clamp_max(len(candidates) - 1))
            currents = functional.linear(inputs, part.weight.to(inputs), None if part.bias is None else part.bias.to(inputs))
            seen = _Filtered(self._filters)
            with replace_parameters(_of_units(self._neuron, part)):
                adapter.each_step(self._neuron, currents.expand(self._steps, -1, -1), seen.add)
            features.append(seen.features)
            rates.append(seen.counts / seen.places)
        return Emitted(torch.cat(features, 1)[:, : len(candidates), None], torch.cat(rates)[: len(candidates)])


class _InNet:
    """Candidates in place of the layer's own rows, a batch of samples at a time."""

    def __init__(
        self,
        net: nn.Module,
        batches: Sequence[StoredBatch],
        layer: HiddenLayer,
        forward: Forward,
        inputs: Tensor,
        fed_by_spikes: bool,
        filters: Tensor,
        rows: Tensor,
    ) -> None:
        self._net, self._batches, self._layer, self._forward, self._filters = net, batches, layer, forward, filters
        self._rows, self.samples = rows.to(inputs.device), len(inputs)
        self.inputs, self.fed_by_spikes = inputs[self._rows], fed_by_spikes
        self.over_time: Tensor | None = None

    def run(self, candidates: Candidates) -> Emitted:
        synapse = self._layer.synapse
        weight = synapse.weight
        assert isinstance(weight, Tensor)
        width, parts, numbers = len(weight), [], []
        for index, fresh in _places(candidates, width, groups_of(synapse)):
            rows = candidates.take(index)
            values: dict[tuple[nn.Module, str], Tensor] = {(synapse, "weight"): rows.weight}
            if rows.bias is not None:
                values[synapse, "bias"] = rows.bias
            values |= _of_units(self._layer.neuron, rows)
            with replace_parameters(values):
                emitted = emitted_in_net(self._net, self._batches, self._layer, self._forward, self._filters, width)
            each = emitted.features.reshape(-1, len(self._filters), *emitted.features.shape[1:])
            parts.append(Emitted(each[self._rows].flatten(0, 1), emitted.rate).take(fresh.nonzero()[:, 0]))
            numbers.append(index[fresh])
        joined = Emitted.join(parts)
        return joined if candidates.groups is None else joined.take(torch.cat(numbers).argsort())
