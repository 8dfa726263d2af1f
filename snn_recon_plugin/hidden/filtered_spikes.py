"""Spikes of a layer, filtered as the temporary readout filters, and added up step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError
from ..networks.calls.forward import Forward
from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.libraries import library_of
from ..networks.structure.layers import HiddenLayer


@dataclass(frozen=True)
class FilteredSpikes:
    """Spikes of M rows of a layer, filtered by K filters."""

    features: Tensor  # (n * K, M, *) float32, all rows of a sample together
    rate: Tensor  # (M,), spikes a step and sample (and position)
    shape: torch.Size  # of the spikes of one step, [n, M, *]
    steps: int


class SpikeSums:
    """Running sums of spikes (B, M, *), weighted by the filters (K, T) of the temporary readout."""

    def __init__(self, filters: Tensor) -> None:
        self._filters: list[list[float]] = filters.T.tolist()
        self._sums: list[Tensor] = []
        self._shape = torch.Size()
        self._steps = 0
        self._counts = torch.zeros(0)  # (M,), spikes over all steps, samples and positions
        self._observed = 0  # steps times samples times positions

    def add(self, spikes: Tensor, membranes: Tensor | None = None) -> None:
        """Add the next step.  Steps of another shape, or beyond the filters, only count as steps."""
        del membranes
        if not self._sums:
            self._shape = spikes.shape
            self._sums = [torch.zeros_like(spikes, dtype=torch.float32) for _ in self._filters[0]]
            self._counts = torch.zeros(spikes.shape[1:2], device=spikes.device)
        if self._steps < len(self._filters) and spikes.shape == self._shape:
            for total, weight in zip(self._sums, self._filters[self._steps], strict=True):
                if weight:
                    total.add_(spikes, alpha=weight)
            active = torch.ne(spikes, 0, out=torch.empty_like(spikes, dtype=torch.float32))  # sums of booleans are slow
            self._counts += active.sum([axis for axis in range(active.dim()) if axis != 1])
            self._observed += active.numel() // max(1, len(self._counts))
        self._steps += 1

    def finish(self) -> FilteredSpikes:
        """Return the spikes of all steps."""
        features = self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums, 1).flatten(0, 1)
        return FilteredSpikes(features, self._counts / max(1, self._observed), self._shape, self._steps)


def record_filtered(
    net: nn.Module,
    layer: HiddenLayer,
    batches: Sequence[StoredBatch],
    forward: Forward,
    filters: Tensor,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> FilteredSpikes:
    """Return a layer's spikes in the net as it is, weighted by filters (K, T), of all samples of some batches.

    ``reduce`` is applied to the features of each batch, before they are joined; None leaves them.

    Raises:
        CaptureError: the net calls the neuron another number of times for one batch than for another.
    """
    parts: list[FilteredSpikes] = []
    for batch in batches:
        sums = SpikeSums(filters)
        visit_spikes(net, layer, batch, forward, sums.add)
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


def visit_spikes(
    net: nn.Module, layer: HiddenLayer, batch: StoredBatch, forward: Forward, visit: Callable[[Tensor], object]
) -> None:
    """Run a batch in the net, and call ``visit`` with a layer's spikes (B, *) at each step."""
    library = library_of(layer.neuron)

    def add(output: Any) -> None:
        spikes = library.spikes(output)
        for step in spikes if library.takes_sequences(layer.neuron) else [spikes]:
            visit(step[: batch.size])

    record(net, batch, forward, Taps(outputs={layer.neuron: add}))
