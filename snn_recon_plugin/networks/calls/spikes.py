"""Spikes of a layer, counted and filtered step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerStats:
    """Firing of a hidden layer over all steps of the first samples: 10,000 and the remainder of their batch."""

    firing_rate: float  # spikes per neuron and step
    silent: float  # fraction of the neurons that never spike
    always_on: float  # fraction of the neurons that spike at every step of every sample
    neurons: int  # for a convolution channels times positions


class SpikeCounter:
    """Counter of the spikes of each unit of a layer."""

    def __init__(self) -> None:
        self.spikes: Tensor | None = None  # of each unit; of the last shape, if steps differ in it
        self.varies = False  # True once steps differ in the shape of a sample: no unit can be followed then
        self._observed = 0  # steps times samples
        self._earlier = [0, 0]  # spikes, and steps times samples times units, of other shapes
        self._buffer: Tensor | None = None

    def add(self, spikes: Tensor, membranes: Tensor | None = None) -> None:
        """Count the spikes of one step, ``[B, *]``."""
        del membranes
        spikes = spikes.detach()
        if self.spikes is not None and self.spikes.shape != spikes.shape[1:]:
            self._earlier, self.varies = list(self._total()), True
            self.spikes, self._observed = None, 0
        # Floats in one place for all steps, summed by a product: booleans take several times as long.
        if self._buffer is None or self._buffer.shape != spikes.shape:
            self._buffer = torch.empty(spikes.shape, dtype=torch.float32, device=spikes.device)
        nonzero, number = torch.ne(spikes, 0, out=self._buffer), len(spikes)
        summed = (nonzero.new_ones(number) @ nonzero.view(number, -1)).long().view(spikes.shape[1:])
        self.spikes = summed if self.spikes is None else self.spikes + summed
        self._observed += number

    @property
    def rate(self) -> float:
        """Spikes a unit and step."""
        spikes, observed = self._total()
        return spikes / max(1, observed)

    @property
    def rates(self) -> Tensor:
        """Spikes a step, sample and position, of each entry of the first axis of units, (M,)."""
        assert self.spikes is not None
        each = self.spikes.flatten(1).sum(1) if self.spikes.dim() > 1 else self.spikes
        return each.float() / max(1, self._observed * self.spikes.shape[1:].numel())

    def stats(self, total: Callable[[Tensor], Tensor] | None = None) -> LayerStats:
        """Return how the layer fired, of units that can't be followed the rate alone; ``total`` sums counts over processes."""
        assert self.spikes is not None
        if self.varies:
            return LayerStats(self.rate, math.nan, math.nan, neurons=0)
        counts = torch.cat([self.spikes.flatten(), self.spikes.new_tensor([self._observed])])
        counts = counts if total is None else total(counts)
        spikes, observed, neurons = counts[:-1], counts[-1], self.spikes.numel()
        return LayerStats(
            firing_rate=float(spikes.sum()) / (neurons * int(observed)),
            silent=float((spikes == 0).sum()) / neurons,
            always_on=float((spikes == observed).sum()) / neurons,
            neurons=neurons,
        )

    def _total(self) -> tuple[int, int]:
        """Return all spikes, and steps times samples times units."""
        if self.spikes is None:
            return self._earlier[0], self._earlier[1]
        return self._earlier[0] + int(self.spikes.sum()), self._earlier[1] + self._observed * self.spikes.numel()


@dataclass(frozen=True)
class FilteredSpikes:
    """Spikes of M rows of a layer, filtered by K filters."""

    features: Tensor  # (n * K, M, *) float32, all rows of a sample together
    rate: Tensor  # (M,), spikes a step and sample (and position)
    steps: int

    def take(self, index: Tensor) -> FilteredSpikes:
        """Return the rows ``index``, in that order."""
        return FilteredSpikes(self.features[:, index], self.rate[index], self.steps)

    @staticmethod
    def join(parts: Sequence[FilteredSpikes]) -> FilteredSpikes:
        """Concatenate several sets of rows on the same samples."""
        features, rate = torch.cat([part.features for part in parts], 1), torch.cat([part.rate for part in parts])
        return FilteredSpikes(features, rate, parts[0].steps)


class SpikeSums:
    """Running sums of spikes (B, M, *), weighted by filters (K, T)."""

    def __init__(self, filters: Tensor) -> None:
        self._filters: list[list[float]] = filters.T.tolist()
        self._sums: list[Tensor] = []
        self._counter = SpikeCounter()
        self._shape = torch.Size()
        self._steps = 0

    def add(self, spikes: Tensor, membranes: Tensor | None = None) -> None:
        """Add the next step.  Steps of another shape, or beyond the filters, only count as steps."""
        del membranes
        if not self._sums:
            self._shape = spikes.shape
            self._sums = [torch.zeros_like(spikes, dtype=torch.float32) for _ in self._filters[0]]
        if self._steps < len(self._filters) and spikes.shape == self._shape:
            for total, weight in zip(self._sums, self._filters[self._steps], strict=True):
                if weight:
                    total.add_(spikes, alpha=weight)
            self._counter.add(spikes)
        self._steps += 1

    def finish(self) -> FilteredSpikes:
        """Return the spikes of all steps."""
        features = self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums, 1).flatten(0, 1)
        return FilteredSpikes(features, self._counter.rates, self._steps)
