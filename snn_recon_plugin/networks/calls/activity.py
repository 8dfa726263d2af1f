"""Activity of a net: features, spikes that enter the readout, and firing of hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CaptureError
from ..libraries import library_of
from ..readout.readout import Readout
from ..structure.layers import NetworkMap, time_first
from .batches import align_ends, lengths_of
from .forward import Forward
from .record import StoredBatch, Taps, record

_COUNTED = 10_000  # samples whose spikes are counted: of 60,000, counting all takes a tenth of a pass


@dataclass(frozen=True)
class LayerStats:
    """Firing of a hidden layer over all steps of the first samples: 10,000 and the remainder of their batch."""

    firing_rate: float  # spikes per neuron and step
    silent: float  # fraction of the neurons that never spike
    always_on: float  # fraction of the neurons that spike at every step of every sample
    neurons: int  # for a convolution channels times positions


class ActivityRecorder:
    """Recorder of features and spike counts, one batch at a time: :meth:`run`, then :meth:`finish`.

    Features are ``sum_t filter[t] * s[t]`` of the values ``s`` that enter the readout; for scores at every step
    ``sum_s matrix[t, s] * s[s]``.  The values themselves are kept for the first ``keep_spikes`` samples.
    """

    def __init__(self, net_map: NetworkMap, readout: Readout, keep_spikes: int = 0) -> None:
        self.net_map, self.readout = net_map, readout
        self._unequal = False  # once batches differ in steps, the values of a batch are held until their number is known
        self._current = readout  # over the steps of the last batch
        self.lengths: Tensor | None = None  # [B], of the last batch, if scores depend on them
        self._calls = 0
        self._features: Tensor | None = None
        self._held: list[Tensor] = []  # values at each call in this batch, if all are needed at its end
        self._firing = {layer.name: FiringCounter(layer.neuron) for layer in net_map.hidden}
        self._done = 0
        self._left = keep_spikes
        self._kept: list[Tensor] = []

    @property
    def num_steps(self) -> int:
        """Time steps of the last batch."""
        return len(self._current.filter)

    def run(self, net: nn.Module, batch: StoredBatch, forward: Forward) -> Any:
        """Run the net on a batch and return its output; run twice if it is the first batch with another number of time steps.

        Raises:
            CaptureError: if the readout needs batches of one number of steps.
        """
        outputs = self._pass(net, batch, forward, count=self._done < _COUNTED)
        if self.net_map.layout == "steps" and not self._unequal and self._calls not in (0, self.num_steps):
            self.readout.for_steps(self._calls)
            self._unequal = True
            outputs = self._pass(net, batch, forward, count=False)
        return outputs

    def _pass(self, net: nn.Module, batch: StoredBatch, forward: Forward, count: bool) -> Any:
        """Run the net on a batch, with or without counting spikes of the hidden neurons."""
        self._calls, self._features = 0, None
        self.lengths = lengths_of(batch.inputs) if self.readout.padded else None
        self._held.clear()
        counters: dict[nn.Module, Callable[[Any], object]] = {
            layer.neuron: self._firing[layer.name].add for layer in self.net_map.hidden if count
        }
        return record(net, batch, forward, Taps(inputs={self.net_map.readout.module: self._add}, outputs=counters))

    def finish(self, number: int, limit: int | None = None) -> Tensor:
        """End a batch and return its features, ``[B, P]``, or ``[B, T, P]`` for scores at every step.

        If outputs differ and have K filters: ``[B, K, P]`` or ``[B, T, K, P]``.  Messages name the batch by its number; spikes
        are kept of its first ``limit`` samples.
        """
        if self._unequal and self._calls:
            self._current = self.readout.for_steps(self._calls)
        elif self.net_map.layout != "steps" and self._held:
            self._current = self.readout.for_steps(self._steps_of(self._held[0]))
        expected = self.num_steps if self.net_map.layout == "steps" else 1
        if self._calls != expected:
            raise CaptureError(
                f"batch {number} called the readout {self.net_map.readout.name!r} {self._calls} times",
                f"{expected} calls, as on the batch that the net was inspected on",
                "run all batches over the same number of steps",
            )
        if self._held:
            self._weigh(limit)
        assert self._features is not None
        self._done += len(self._features)
        return self._features

    @property
    def firing(self) -> dict[str, FiringCounter]:
        """Counters of the hidden layers that ran."""
        return {name: counter for name, counter in self._firing.items() if counter.spikes is not None}

    def spikes(self, steps: int = 0) -> Tensor | None:
        """Return what entered the readout, ``[T, m, P]``, uint8 if it was 0 or 1 throughout; None if nothing was kept.

        T is ``steps``, if no sample has more.  If samples differ in steps, the shorter ones have zeros before their first step,
        during which a neuron stays at rest.
        """
        if not self._kept:
            return None
        dtype = next((part.dtype for part in self._kept if part.dtype != torch.uint8), torch.uint8)
        longest = max(steps, *(len(part) for part in self._kept))
        return torch.cat([functional.pad(part.to(dtype), (0, 0, 0, 0, longest - len(part), 0)) for part in self._kept], dim=1)

    def _add(self, spikes: Tensor) -> None:
        """Hold the values that enter the readout, or add them to the features."""
        step, self._calls = self._calls, self._calls + 1
        one_filter = self.lengths is None and self.readout.filters is None and not self.readout.per_step
        if self.net_map.layout != "steps" or self._left > 0 or self._unequal or not one_filter:
            self._held.append(spikes.detach().clone())
        elif step < self.num_steps:  # more are refused at the end of the batch
            self._add_weighted(step, spikes.detach())

    def _add_weighted(self, step: int, spikes: Tensor) -> None:
        """Add the values of a step to the features, weighted by the filter."""
        weight, spikes = float(self._current.filter[step]), spikes.to(torch.float32)
        self._features = spikes * weight if self._features is None else self._features.add_(spikes, alpha=weight)

    def _weigh(self, limit: int | None) -> None:
        """Make features of the values of all steps, and keep the values of the first samples."""
        readout, spikes = self._current, time_first(self.net_map.layout, self._held, self.num_steps)
        if readout.filters is not None:
            matrices, equation = (
                (readout.filters.matrices, "kts,sbp->btkp") if readout.per_step else (readout.filters.filters, "ks,sbp->bkp")
            )
            self._features = torch.einsum(equation, matrices.to(spikes.device, torch.float32), spikes.to(torch.float32))
        elif readout.per_step:
            self._features = torch.einsum("ts,sbp->btp", readout.matrix.to(spikes.device, torch.float32), spikes.to(torch.float32))
        elif self.lengths is not None:
            filters = readout.filters_at(self.lengths, len(spikes)).to(spikes.device, torch.float32)
            self._features = torch.einsum("tb,tbp->bp", filters, spikes.to(torch.float32))
            spikes = align_ends(spikes, self.lengths, int(self.lengths.max()))
        else:
            for step, values in enumerate(spikes):
                self._add_weighted(step, values)
        if self._left > 0:
            part = spikes[:, : min(self._left, spikes.shape[1] if limit is None else limit)]
            binary = bool(((part == 0) | (part == 1)).all())
            self._kept.append(part.to(torch.uint8) if binary else part.clone())
            self._left -= part.shape[1]
        self._held.clear()

    def _steps_of(self, spikes: Tensor) -> int:
        """Return the number of steps in a call that holds all of them; the number inspected if they are folded with samples."""
        if self.net_map.layout in ("time_first", "batch_first"):
            return spikes.shape[1 if self.net_map.layout == "batch_first" else 0]
        if len(spikes) % self.net_map.num_steps != 0:
            raise CaptureError(
                f"a batch of {len(spikes)} time steps times samples",
                f"{self.net_map.num_steps} steps, as on the batch that the net was inspected on",
                "run all batches over the same number of steps",
            )
        return self.net_map.num_steps


class FiringCounter:
    """Counter of the spikes of each neuron of a layer."""

    def __init__(self, neuron: nn.Module) -> None:
        self.spikes: Tensor | None = None
        self._library = library_of(neuron)
        self._leading = 2 if self._library.takes_sequences(neuron) else 1
        self._observed = 0
        self._buffer: Tensor | None = None

    def add(self, output: Any) -> None:
        """Count the spikes in an output of the layer's neuron."""
        spikes = self._library.spikes(output).detach()
        number = spikes.shape[: self._leading].numel()
        # Floats in one place for all steps, summed by a product: booleans take several times as long.
        if self._buffer is None or self._buffer.shape != spikes.shape:
            self._buffer = torch.empty(spikes.shape, dtype=torch.float32, device=spikes.device)
        nonzero = torch.ne(spikes, 0, out=self._buffer)
        each = spikes.shape[self._leading :]
        summed = (nonzero.new_ones(number) @ nonzero.view(number, each.numel())).long().view(each)
        self.spikes = summed if self.spikes is None else self.spikes + summed
        self._observed += number

    def stats(self, total: Callable[[Tensor], Tensor] | None = None) -> LayerStats:
        """Return how the layer fired; ``total`` sums counts over processes."""
        assert self.spikes is not None
        counts = torch.cat([self.spikes.flatten(), self.spikes.new_tensor([self._observed])])
        counts = counts if total is None else total(counts)
        spikes, observed, neurons = counts[:-1], counts[-1], self.spikes.numel()
        return LayerStats(
            firing_rate=float(spikes.sum()) / (neurons * int(observed)),
            silent=float((spikes == 0).sum()) / neurons,
            always_on=float((spikes == observed).sum()) / neurons,
            neurons=neurons,
        )
