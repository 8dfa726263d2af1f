"""What candidates would emit: the layer's own neuron run on their currents, filtered as the readout filters.

Two ways lead to the same spikes, but for rounding; selected rows are run in the net once more before they are kept.  Where the
neuron's current is the synapse's output and nothing else, candidates are run outside the net, a chunk at a time; the layer's
input is recorded once.  Where a pooling or a normalisation lies between, the net itself is run with candidates in place of the
layer's rows, as many at a time as the layer is wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    StoredBatch,
    adapter_of,
    neuron_currents,
    neuron_spikes,
    trial_parameters,
)

from .recorded import different, in_time, layout_of, mean_input, record_inputs, record_means
from .site import Candidates

__all__ = ["Emitted", "Simulator", "emitted_in_net", "simulator_of"]

_BYTES = 256 * 2**20  # of the membranes and spikes that are there at a time
_FEW = 64  # samples by which the order of time and batch is told
_GRID = 3  # a convolution's positions are pooled to so many by so many: where a feature is counts for as much


@dataclass(frozen=True)
class Emitted:
    """What candidates do on the samples.

    Args:
        features: (n, M, G), filtered over time; G positions for a convolution, 1 otherwise.
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
    """

    inputs: Tensor
    fed_by_spikes: bool
    samples: int

    def run(self, candidates: Candidates) -> Emitted:
        """What the candidates emit."""
        ...


def simulator_of(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, kernel: Tensor, rows: Tensor
) -> Simulator:
    """The faster of the two ways that gives what the net would.

    Args:
        net: the net, held by ``preserved``, with what was decided for the layers below.
        batches: the samples.
        layer: a Linear or Conv2d whose neuron can be simulated alone.
        forward: how the net is called.
        kernel: (T,), the readout's filter.
        rows: (k,) which of the samples take part.
    """
    if not isinstance(layer.synapse, nn.Linear):
        means, fed_by_spikes = record_means(net, batches, layer, forward, len(kernel))
        return _InNet(net, batches, layer, forward, means, fed_by_spikes, kernel, rows)
    calls, fed_by_spikes = record_inputs(net, batches, layer, forward)
    shares = [batch.rows.stop - batch.rows.start for batch in batches]
    currents = neuron_currents(net, batches[:1], layer, forward)
    steps = len(currents)
    if steps != len(kernel):
        raise UnsupportedModuleError(
            f"hidden layer {layer.name!r} whose neuron runs {steps} times in {len(kernel)} steps",
            "a neuron of its own for every layer, run once a step",
            "give each layer its own neuron, or pass hidden='rescale'",
        )
    layout = layout_of(layer.synapse, calls[0], currents)
    if layout is None:
        parts = [mean_input(call, len(kernel), share) for call, share in zip(calls, shares, strict=True)]
        return _InNet(net, batches, layer, forward, torch.cat(parts), fed_by_spikes, kernel, rows)
    still = layout == "still" or (layout == "steps" and all(len(different(call)) == 1 for call in calls))
    joined = [
        in_time(layout, call[:1] if still and layout == "steps" else call, 1 if still else steps)[:, :share]
        for call, share in zip(calls, shares, strict=True)
    ]
    return _Alone(layer, torch.cat(joined, 1), steps, fed_by_spikes, kernel, rows)


def emitted_in_net(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, kernel: Tensor, width: int
) -> Emitted:
    """What a layer of ``width`` rows emits in the net, with the parameters it has, on all samples of the batches.

    Raises:
        UnsupportedModuleError: its spikes are not ``[T, B, width, *]``, or come at another number of steps than the readout reads.
    """
    features, counts, samples = [], [], 0
    kernel = kernel.to(torch.float32)
    for batch in batches:
        spikes = neuron_spikes(net, [batch], layer, forward)
        if len(spikes) != len(kernel) or spikes.dim() not in (3, 5) or spikes.shape[2] != width:
            raise UnsupportedModuleError(
                f"hidden layer {layer.name!r} whose neuron emits {list(spikes.shape)}",
                f"({len(kernel)} steps, samples, {width} rows) or, for a convolution, its positions behind these",
                "pass hidden='rescale', which keeps the layers' own weights",
            )
        active = (spikes != 0).float().movedim(2, 0).flatten(1)
        counts.append(active.mean(1) * spikes.shape[1])
        values = torch.einsum("t,tn...->n...", kernel.to(spikes.device), spikes.float())
        if values.dim() == 4:
            values = functional.adaptive_avg_pool2d(values, _GRID)
        features.append(values.flatten(2) if values.dim() > 2 else values[:, :, None])
        samples += spikes.shape[1]
    return Emitted(torch.cat(features), torch.stack(counts).sum(0) / max(1, samples))


class _Alone:
    """Candidates outside the net."""

    def __init__(self, layer: HiddenLayer, inputs: Tensor, steps: int, fed_by_spikes: bool, kernel: Tensor, rows: Tensor) -> None:
        weight = layer.synapse.weight
        assert isinstance(weight, Tensor)
        self._neuron, self._steps, self._kernel, self._dtype = layer.neuron, steps, kernel, weight.dtype
        self.samples, self.fed_by_spikes = inputs.shape[1], fed_by_spikes
        self._recorded = inputs[:, rows.to(inputs.device)]
        self.inputs = self._recorded.float().mean(0)

    def run(self, candidates: Candidates) -> Emitted:
        adapter, samples = adapter_of(self._neuron), self._recorded.shape[1]
        # Spikes and membranes at all steps, and as much again while they are stacked.
        chunk = max(1, _BYTES // (16 * self._steps * samples))
        features, rates = [], []
        kernel = self._kernel.to(self._recorded.device, torch.float32)
        inputs = self._recorded.to(self._dtype)
        for start in range(0, len(candidates), chunk):
            part = candidates.take(torch.arange(start, min(start + chunk, len(candidates)), device=inputs.device))
            currents = functional.linear(inputs, part.weight.to(inputs), None if part.bias is None else part.bias.to(inputs))
            spikes = adapter.run(self._neuron, currents.expand(self._steps, -1, -1)).spikes
            features.append(torch.einsum("t,tnm->nm", kernel, spikes.float()))
            rates.append((spikes != 0).float().mean((0, 1)))
        return Emitted(torch.cat(features, 1)[:, :, None], torch.cat(rates))


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
        kernel: Tensor,
        rows: Tensor,
    ) -> None:
        self._net, self._batches, self._layer, self._forward, self._kernel = net, batches, layer, forward, kernel
        self._rows, self.samples = rows.to(inputs.device), len(inputs)
        self.inputs, self.fed_by_spikes = inputs[self._rows], fed_by_spikes

    def run(self, candidates: Candidates) -> Emitted:
        synapse = self._layer.synapse
        weight = synapse.weight
        assert isinstance(weight, Tensor)
        width, parts = len(weight), []
        for start in range(0, len(candidates), width):
            index = torch.arange(start, start + width, device=candidates.weight.device).clamp_max(len(candidates) - 1)
            rows = candidates.take(index)
            values: dict[tuple[nn.Module, str], Tensor] = {(synapse, "weight"): rows.weight}
            if rows.bias is not None:
                values[synapse, "bias"] = rows.bias
            with trial_parameters(values):
                emitted = emitted_in_net(self._net, self._batches, self._layer, self._forward, self._kernel, width)
            some = torch.arange(min(width, len(candidates) - start), device=emitted.rate.device)
            parts.append(Emitted(emitted.features[self._rows], emitted.rate).take(some))
        return Emitted.join(parts)
