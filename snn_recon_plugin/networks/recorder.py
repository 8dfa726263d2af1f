"""What is gathered while the net runs over the data: features, spikes that enter the readout, and firing counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CaptureError
from .forward import Forward
from .hooks import Hooks
from .layers import HiddenLayer, NetworkMap, time_first
from .libraries import library_of
from .readout import Readout
from .record import StoredBatch, Taps, record

__all__ = ["LayerStats", "Recorder"]

_COUNTED = 10_000  # samples whose spikes are counted: of 60,000, to count all is a tenth of a pass


@dataclass(frozen=True)
class LayerStats:
    """How a hidden layer fires, over all steps of the first samples, 10,000 and the rest of their batch.

    Args:
        firing_rate: spikes for each neuron and step.
        silent: fraction of the neurons that never spike.
        always_on: fraction of the neurons that spike at every step of every sample.
        neurons: how many neurons there are; for a convolution, channels times positions.
    """

    firing_rate: float
    silent: float
    always_on: float
    neurons: int


class Recorder:
    """Sums up features and counts spikes, one batch at a time: :meth:`run`, then :meth:`finish`.

    Args:
        net_map: the net's map.
        readout: its readout, whose filter makes the features; one with scores at every step makes some for each step.
        keep_spikes: keep what enters the readout, at every step, of so many samples.
    """

    def __init__(self, net_map: NetworkMap, readout: Readout, keep_spikes: int = 0) -> None:
        self._map, self._readout = net_map, readout
        self._unequal = False  # once batches differ in steps, those of a batch are kept until their number is known
        self._take(readout)
        self._matrix = readout.matrix.to(torch.float32) if readout.per_step else None
        if readout.filters is not None:  # (K, T), or (K, T, T) of scores at every step
            kernels = readout.filters.matrices if readout.per_step else readout.filters.filters
            self._own: Tensor | None = kernels.to(torch.float32)
        else:
            self._own = None
        self._calls = 0
        self._features: Tensor | None = None
        self._steps: list[Tensor] = []
        self._spikes: dict[str, Tensor] = {}
        self._observed = dict.fromkeys((layer.name for layer in net_map.hidden), 0)
        self._active: dict[str, Tensor] = {}
        self._counting, self._done = True, 0
        self._left = keep_spikes
        self._entered: list[Tensor] = []
        self._kept: list[Tensor] = []

    @property
    def taps(self) -> Taps:
        """The taps on the readout and on the hidden neurons."""
        counters = {layer.neuron: self._counter(layer) for layer in self._map.hidden}
        return Taps(inputs={self._map.readout.module: self._add}, outputs=counters)

    def run(self, net: nn.Module, batch: StoredBatch, forward: Forward) -> Any:
        """Run the net on a batch; run it again if the batch is the first with another number of time steps.

        Returns:
            The output of the net's forward.

        Raises:
            CaptureError: if the readout can't be that of batches of different numbers of steps.
        """
        self.start()
        outputs = record(net, batch, forward, self.taps)
        if self._must_repeat():
            self.start(again=True)
            outputs = record(net, batch, forward, self.taps)
        return outputs

    def register(self, hooks: Hooks) -> None:
        """Put the hooks on the readout and on the hidden neurons."""
        hooks.on_input(self._map.readout.module, self._add)
        for layer in self._map.hidden:
            hooks.on_output(layer.neuron, self._counter(layer))

    def start(self, again: bool = False) -> None:
        """Begin a batch, or one that was run before and is not to be counted twice."""
        self._counting = self._done < _COUNTED and not again
        self._calls, self._features = 0, None
        self._entered.clear()
        self._steps.clear()

    @property
    def num_steps(self) -> int:
        """Time steps of the last batch."""
        return self._num_steps

    def _must_repeat(self) -> bool:
        """Return whether this is the first batch that has another number of steps than the batch inspected."""
        if self._map.layout != "steps" or self._unequal or self._calls in (0, self._num_steps):
            return False
        self._readout.at(self._calls)
        self._unequal = True
        return True

    def finish(self, number: int, limit: int | None = None) -> Tensor:
        """End a batch and give its features, ``[B, P]``, or ``[B, T, P]`` for scores at every step.

        Where outputs have K filters of their own, ``[B, K, P]`` or ``[B, T, K, P]``.

        Args:
            number: which batch it is, for messages.
            limit: how many of its samples count, where not all do.
        """
        if self._unequal and self._steps:
            self._take(self._readout.at(len(self._steps)))
        if self._steps and self._calls == self._expected:
            self._features = self._weigh(torch.stack(self._steps))
        if self._calls != self._expected or self._features is None:
            raise CaptureError(
                f"batch {number} called the readout {self._map.readout.name!r} {self._calls} times",
                f"{self._expected} calls, as on the batch that the net was inspected on",
                "run all batches over the same number of steps",
            )
        if self._entered:
            rows = min(self._left, len(self._features) if limit is None else limit)
            part = time_first(self._map.layout, self._entered, self._num_steps)[:, :rows]
            self._kept.append(_compact(part))
            self._left -= rows
            self._entered.clear()
        self._done += len(self._features)
        return self._features

    def stats(self) -> dict[str, LayerStats]:
        """Sum up how each hidden layer fired."""
        return {name: _stats(count, self._observed[name]) for name, count in self._spikes.items()}

    def spikes(self) -> Tensor | None:
        """Give what entered the readout, ``[T, m, P]``, uint8 where it was 0 or 1 throughout; None where none was kept.

        Where batches differ in steps, the shorter ones have zeros before their first step, during which a neuron stays at rest.
        """
        if not self._kept:
            return None
        dtype = next((part.dtype for part in self._kept if part.dtype != torch.uint8), torch.uint8)
        longest = max(len(part) for part in self._kept)
        return torch.cat([functional.pad(part.to(dtype), (0, 0, 0, 0, longest - len(part), 0)) for part in self._kept], dim=1)

    @property
    def _expected(self) -> int:
        """Calls of the readout in a batch."""
        return self._num_steps if self._map.layout == "steps" else self._map.calls

    def _take(self, readout: Readout) -> None:
        """Weigh spikes by the filter of a readout."""
        self._num_steps = len(readout.filter)
        self._weights: list[float] = readout.filter.tolist()
        self._filter = readout.filter.to(torch.float32)

    def _add(self, spikes: Tensor) -> None:
        """Add what entered the readout, weighted by the filter's value at its step."""
        step, self._calls = self._calls, self._calls + 1
        if step >= self._expected and not self._unequal:
            return  # Counted, and refused at the end of the batch.
        if self._left > 0:
            self._entered.append(spikes.detach().clone())
        spikes = spikes.detach().to(torch.float32)
        if self._map.layout != "steps":
            self._take(self._readout.at(self._steps_of(spikes)))
            whole = time_first(self._map.layout, [spikes], self._num_steps)
            self._features = self._weigh(whole)
        elif self._matrix is not None or self._own is not None or self._unequal:
            self._steps.append(spikes.clone())  # the features of each step, or filter, need the spikes of all
        elif self._features is None:
            self._features = spikes * self._weights[step]
        else:
            self._features.add_(spikes, alpha=self._weights[step])

    def _weigh(self, spikes: Tensor) -> Tensor:
        """Weight the spikes of all steps, ``[T, B, P]``, by the filter, or by that of each step or output."""
        if self._own is not None:
            kernels = self._own.to(spikes.device)
            return torch.einsum("kt,tbp->bkp" if kernels.dim() == 2 else "kts,sbp->btkp", kernels, spikes)
        if self._matrix is None:
            return torch.einsum("t,tbp->bp", self._filter.to(spikes.device), spikes)
        return torch.einsum("ts,sbp->btp", self._matrix.to(spikes.device), spikes)

    def _steps_of(self, spikes: Tensor) -> int:
        """Read the number of steps off a call that holds all of them; where they are folded with samples, that inspected."""
        if not self._map.layout.startswith("folded"):
            return spikes.shape[1 if self._map.layout == "batch_first" else 0]
        if len(spikes) % self._map.num_steps != 0:
            raise CaptureError(
                f"a batch of {len(spikes)} time steps times samples",
                f"{self._map.num_steps} steps, as on the batch that the net was inspected on",
                "run all batches over the same number of steps",
            )
        return self._map.num_steps

    def _counter(self, layer: HiddenLayer) -> Callable[[Any], None]:
        adapter = library_of(layer.neuron)
        buffers = self._active
        leading = 2 if adapter.takes_sequences(layer.neuron) else 1

        def count(output: Any) -> None:
            if not self._counting:
                return
            spikes = adapter.spikes(output).detach()
            number = spikes.shape[:leading].numel()
            # Numbers at once, in one place for all steps, added up by a product: booleans take several times as long.
            if layer.name not in buffers or buffers[layer.name].shape != spikes.shape:
                buffers[layer.name] = torch.empty(spikes.shape, dtype=torch.float32, device=spikes.device)
            active = torch.ne(spikes, 0, out=buffers[layer.name])
            each = spikes.shape[leading:]
            summed = (active.new_ones(number) @ active.view(number, each.numel())).long().view(each)
            self._spikes[layer.name] = self._spikes[layer.name] + summed if layer.name in self._spikes else summed
            self._observed[layer.name] += number

        return count


def _compact(spikes: Tensor) -> Tensor:
    """Store spikes as bytes where each is 0 or 1."""
    binary = bool(((spikes == 0) | (spikes == 1)).all())
    return spikes.to(torch.uint8) if binary else spikes.clone()


def _stats(count: Tensor, observed: int) -> LayerStats:
    neurons = count.numel()
    return LayerStats(
        firing_rate=float(count.sum()) / (neurons * observed),
        silent=float((count == 0).sum()) / neurons,
        always_on=float((count == observed).sum()) / neurons,
        neurons=neurons,
    )
