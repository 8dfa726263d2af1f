"""What candidates would emit: the layer's own neuron run on their currents, filtered as the readout filters.

Two ways lead to the same bits.  Where the neuron's current is the synapse's output and nothing else, candidates are run outside
the net, a chunk at a time; the layer's input is recorded once.  Where a pooling or a normalisation lies between, the net itself
is run with candidates in place of the layer's rows, as many at a time as the layer is wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin.errors import CaptureError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    StoredBatch,
    adapter_of,
    neuron_currents,
    neuron_spikes,
    run_batch,
    trial_parameters,
)
from snn_recon_plugin.networks.hooks import temporary_hooks
from snn_recon_plugin.networks.layouts import LAYOUTS, fits, time_first

from .site import Candidates

__all__ = ["Emitted", "Simulator", "simulator_of"]

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
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, kernel: Tensor, rows: range
) -> Simulator:
    """The faster of the two ways that gives what the net would.

    Args:
        net: the net, held by ``preserved``, with what was decided for the layers below.
        batches: the samples.
        layer: a Linear or Conv2d whose neuron can be simulated alone.
        forward: how the net is called.
        kernel: (T,), the readout's filter.
        rows: which of the samples take part.
    """
    calls = _record_inputs(net, batches, layer, forward)
    shares = [batch.rows.stop - batch.rows.start for batch in batches]
    fed_by_spikes = all(bool(((part == 0) | (part == 1)).all()) for call in calls for part in _different(call))
    currents = neuron_currents(net, batches[:1], layer, forward)
    steps = len(currents)
    layout = _layout(layer.synapse, calls[0], currents) if isinstance(layer.synapse, nn.Linear) else None
    if layout is None:
        means = [_mean(call, steps, share) for call, share in zip(calls, shares, strict=True)]
        return _InNet(net, batches, layer, forward, torch.cat(means), fed_by_spikes, kernel, rows)
    still = layout == "still" or (layout == "steps" and all(len(_different(call)) == 1 for call in calls))
    joined = [
        _time_first(layout, call[:1] if still and layout == "steps" else call, 1 if still else steps)[:, :share]
        for call, share in zip(calls, shares, strict=True)
    ]
    dtype = torch.uint8 if fed_by_spikes else joined[0].dtype
    return _Alone(layer, torch.cat([part.to(dtype) for part in joined], 1), steps, fed_by_spikes, kernel, rows)


def _record_inputs(net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> list[list[Tensor]]:
    """What enters the synapse at each call, batch by batch; the same tensor again where a call sees what the first saw."""
    recorded: list[list[Tensor]] = []
    calls: list[Tensor] = []

    def record(value: Tensor) -> None:
        same = bool(calls) and value.shape == calls[0].shape and torch.equal(value, calls[0])
        calls.append(calls[0] if same else value.detach().clone())

    with torch.no_grad(), temporary_hooks() as hooks:
        hooks.on_input(layer.synapse, record)
        for batch in batches:
            calls.clear()
            run_batch(net, batch, forward)
            if not calls:
                needed = "the same layers for every batch"
                raise CaptureError(f"a forward pass that does not call {layer.name!r}", needed, "check the loader")
            recorded.append(list(calls))
    return recorded


def _different(calls: Sequence[Tensor]) -> list[Tensor]:
    return list({id(call): call for call in calls}.values())


def _mean(calls: Sequence[Tensor], steps: int, share: int) -> Tensor:
    """What enters a layer, averaged over time.  In a single call that folds time and samples, time is taken to come first."""
    if len(calls) == 1 and steps > 1 and len(calls[0]) % steps == 0 and len(calls[0]) >= steps * share:
        calls = list(calls[0].reshape(steps, -1, *calls[0].shape[1:]))
    total = calls[0].float()
    for call in calls[1:]:
        total = total + call
    return total[:share] / len(calls)


def _layout(synapse: nn.Linear, calls: list[Tensor], currents: Tensor) -> str | None:
    """In which order a Linear sees time and batch, told by the neuron's currents; None where these are something else."""
    steps, shapes = len(currents), [call.shape for call in calls]
    sizes = {*shapes[0][:-1], shapes[0][0] // steps}
    for layout in ("still", *LAYOUTS):
        if layout == "still":
            fitting = len(calls) == 1 and len(shapes[0]) == 2
        else:
            fitting = any(fits(layout, shapes, steps, size) for size in sizes)
        if not fitting:
            continue
        few = _time_first(layout, calls, steps)[:, :_FEW]
        wanted = currents[:, :_FEW]
        made = functional.linear(few, synapse.weight, synapse.bias)[:, : wanted.shape[1]]
        if made.shape == wanted.shape and torch.allclose(made, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())):
            return layout
    return None


def _time_first(layout: str, calls: Sequence[Tensor], steps: int) -> Tensor:
    if layout == "still":
        return calls[0].expand(steps, *calls[0].shape)
    return time_first(layout, calls, steps)


class _Alone:
    """Candidates outside the net."""

    def __init__(self, layer: HiddenLayer, inputs: Tensor, steps: int, fed_by_spikes: bool, kernel: Tensor, rows: range) -> None:
        weight = layer.synapse.weight
        assert isinstance(weight, Tensor)
        self._neuron, self._steps, self._kernel, self._dtype = layer.neuron, steps, kernel, weight.dtype
        self.samples, self.fed_by_spikes = inputs.shape[1], fed_by_spikes
        self._recorded = inputs[:, rows.start : rows.stop]
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
            rates.append(spikes.float().mean((0, 1)))
        return Emitted(torch.cat(features, 1)[:, :, None], torch.cat(rates))


class _InNet:
    """Candidates in place of the layer's own rows."""

    def __init__(
        self,
        net: nn.Module,
        batches: Sequence[StoredBatch],
        layer: HiddenLayer,
        forward: Forward,
        inputs: Tensor,
        fed_by_spikes: bool,
        kernel: Tensor,
        rows: range,
    ) -> None:
        self._net, self._batches, self._layer, self._forward, self._kernel = net, batches, layer, forward, kernel
        self._rows, self.samples = slice(rows.start, rows.stop), len(inputs)
        self.inputs, self.fed_by_spikes = inputs[self._rows], fed_by_spikes

    def run(self, candidates: Candidates) -> Emitted:
        synapse = self._layer.synapse
        weight = synapse.weight
        assert isinstance(weight, Tensor)
        width, parts = len(weight), []
        for start in range(0, len(candidates), width):
            index = torch.arange(start, start + width, device=weight.device).clamp_max(len(candidates) - 1)
            rows = candidates.take(index)
            values: dict[tuple[nn.Module, str], Tensor] = {(synapse, "weight"): rows.weight}
            if rows.bias is not None:
                values[synapse, "bias"] = rows.bias
            with trial_parameters(values):
                spikes = neuron_spikes(self._net, self._batches, self._layer, self._forward)[:, self._rows]
            parts.append(self._emitted(spikes).take(torch.arange(min(width, len(candidates) - start), device=spikes.device)))
        return Emitted.join(parts)

    def _emitted(self, spikes: Tensor) -> Emitted:
        """Filtered over time and pooled over positions, ``[T, n, M, *]``."""
        kernel = self._kernel.to(spikes.device, torch.float32)
        if len(kernel) != len(spikes):
            raise UnsupportedModuleError(
                f"a hidden layer {self._layer.name!r} of {len(spikes)} steps under a readout of {len(kernel)}",
                "as many steps in every layer",
                "pass hidden='rescale'",
            )
        values = torch.einsum("t,tn...->n...", kernel, spikes.float())
        if values.dim() == 4:
            values = functional.adaptive_avg_pool2d(values, _GRID)
        return Emitted(
            values.flatten(2) if values.dim() > 2 else values[:, :, None], spikes.float().movedim(2, 0).flatten(1).mean(1)
        )
