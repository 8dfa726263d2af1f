"""Spikes of a layer, filtered as the temporary readout filters, and added up step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import CaptureError
from ..networks.calls.record import StoredBatch, Taps, record, spike_taps
from ..networks.calls.spikes import FilteredSpikes, SpikeSums
from ..networks.structure.layers import HiddenLayer
from .hidden_task import HiddenTask


def record_filtered(
    task: HiddenTask, layer: HiddenLayer, batches: Sequence[StoredBatch], reduce: Callable[[Tensor], Tensor] | None = None
) -> FilteredSpikes:
    """Return a layer's filtered spikes in the net as it is, of all samples of some batches.

    ``reduce`` is applied to the features of each batch, before they are joined; None leaves them.

    Raises:
        CaptureError: the net calls the neuron another number of times for one batch than for another.
    """
    parts: list[FilteredSpikes] = []
    for batch in batches:
        sums = SpikeSums(task.temporary.filters)
        visit_spikes(task, layer, batch, sums.add)
        part = sums.finish()
        parts.append(part if reduce is None else replace(part, features=reduce(part.features)))
        if part.steps != parts[0].steps:
            raise CaptureError(
                f"the neuron {layer.neuron_name!r} was called {part.steps} times in a forward pass",
                f"the same number of calls for every batch, {parts[0].steps} as in the first one",
                "run all batches over the same number of steps, and give every layer a neuron of its own",
            )
    samples = [part.shape[0] for part in parts]
    rate = torch.stack([part.rate * count for part, count in zip(parts, samples, strict=True)]).sum(0) / sum(samples)
    shape = torch.Size([sum(samples), *parts[0].shape[1:]])
    return FilteredSpikes(torch.cat([part.features for part in parts]), rate, shape, parts[0].steps)


def visit_spikes(task: HiddenTask, layer: HiddenLayer, batch: StoredBatch, visit: Callable[[Tensor], object]) -> None:
    """Run a batch in the net, and call ``visit`` with a layer's spikes (B, *) at each step."""
    taps = spike_taps({layer.neuron: lambda spikes: visit(spikes[: batch.size])})
    record(task.net, batch, task.forward, Taps(outputs=taps))
