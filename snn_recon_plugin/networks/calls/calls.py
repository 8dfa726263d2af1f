"""Calls of a net's layers: what enters them, their spikes, counted and filtered, and the order of time and samples in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import CaptureError, UnsupportedModuleError
from ..structure.layers import HiddenLayer
from .forward import Forward
from .record import StoredBatch, Taps, first_batches, spike_taps, watch

# One call per step with [B, *]; or a single call, with time and batch in either order, on two axes or folded into one.
LAYOUTS = ("steps", "time_first", "batch_first", "folded", "folded_batch_first")
CONSTANT = "constant"  # layout of a single call whose output serves at all steps
_COMPARED = 2**17  # most currents that are compared at a time


class Calls(list[Tensor]):
    """Tensors of a module's calls in one pass; as long as they equal the first one, they share its memory."""

    def add(self, value: Tensor, *, in_bytes: bool = False) -> int:
        """Add a copy of the tensor of a call, in bytes if wanted and all are 0 or 1; return the number of bytes that it takes."""
        value = value.detach()
        if self and self[-1] is self[0] and torch.equal(value, self[0].to(value.dtype)):
            self.append(self[0])
            return 0
        binary = in_bytes and bool(((value == 0) | (value == 1)).all())
        self.append(value.to(torch.uint8) if binary else value.clone())
        return self[-1].nbytes

    def join(self, layout: str, steps: int) -> Tensor:
        """Return all calls as ``[T, B, *]``; a view if they are one tensor."""
        if layout == CONSTANT or (layout == "steps" and all(call is self[0] for call in self)):
            return self[0].expand(steps, *self[0].shape)
        return time_first(layout, self, steps)


@dataclass(frozen=True)
class CallRecorder:
    """Recorder of the calls of layers, in passes of a private net over some batches."""

    net: nn.Module
    batches: Sequence[StoredBatch]
    forward: Forward

    def first(self, samples: int) -> CallRecorder:
        """Return a recorder of the first batches, which hold at least some samples."""
        return replace(self, batches=first_batches(self.batches, samples))

    # -- neurons -----------------------------------------------------------------------------------------------------------

    def record_currents(self, layer: HiddenLayer, keep: int | None = None, most: float = math.inf) -> Tensor:
        """Return the currents that enter a layer's neuron, ``[T, n, *]``, of all samples or the first ``keep`` of each batch.

        Currents that are the same at all steps are in memory once; more than ``most`` bytes are refused.
        """
        calls, lengths, parts, stored = Calls(), list[int](), list[Tensor](), 0
        own, axis = layer.library.synapse(layer.neuron), 1 if layer.takes_sequences else 0

        def add(current: Tensor) -> None:
            nonlocal stored
            if keep is not None and current.ndim > axis:
                current = current.narrow(axis, 0, min(keep, current.shape[axis]))
            stored += calls.add(current)
            if stored > most:
                found = f"hidden layer {layer.name!r} with currents of more than {most} bytes"
                raise UnsupportedModuleError(found, f"at most {most} bytes", "pass fewer samples or steps")

        if own is None or own.module is layer.neuron:
            taps = Taps(inputs={layer.neuron: add})
        else:
            # The synapse inside the neuron gives the currents of all steps in one call, time and batch folded.
            taps = Taps(
                inputs={layer.neuron: lambda value: lengths.append(len(value))},
                outputs={own.module: lambda current: add(current.unflatten(0, (lengths[-1], -1)))},
            )
        for batch in self.batches:
            calls.clear()
            watch(self.net, batch, self.forward, taps)
            steps = 1 if layer.takes_sequences else len(parts[0]) if parts else len(calls)
            if not calls or len(calls) != steps:
                raise _varying_calls(layer, len(calls), "at least one")
            if len({call.shape for call in calls}) > 1:
                shown = " and ".join(str(list(shape)) for shape in dict.fromkeys(call.shape for call in calls))
                found = f"the neuron {layer.neuron_name!r} of hidden layer {layer.name!r}, called on currents of shape {shown}"
                raise UnsupportedModuleError(found, "a neuron of its own for each layer", "give every layer a neuron of its own")
            joined = calls.join("time_first" if layer.takes_sequences else "steps", steps)
            if parts and joined.shape[2:] != parts[0].shape[2:]:
                raise UnsupportedModuleError(
                    f"the neuron {layer.neuron_name!r}, whose currents have the shape {list(joined.shape[2:])} in one batch, and "
                    f"{list(parts[0].shape[2:])} in another",
                    "samples of one size",
                    "resize the samples in the loader",
                )
            parts.append(joined[:, : batch.size])
        if len(parts[0]) > 1 and all(part.stride(0) == 0 for part in parts):
            return torch.cat([part[:1] for part in parts], dim=1).expand(len(parts[0]), *[-1] * (parts[0].dim() - 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def visit_spikes(self, layer: HiddenLayer, visit: Callable[[Tensor], object]) -> None:
        """Call ``visit`` with the spikes (B, *) of a layer at each step of each batch."""
        for batch in self.batches:

            def add(spikes: Tensor, size: int = batch.size) -> None:
                visit(spikes[:size])

            watch(self.net, batch, self.forward, Taps(outputs=spike_taps({layer.neuron: add})))

    def filter_spikes(
        self, layer: HiddenLayer, filters: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> FilteredSpikes:
        """Return a layer's spikes, filtered by filters (K, T) and summed; ``reduce`` is applied to the features of each batch."""
        parts: list[FilteredSpikes] = []
        for batch in self.batches:
            counter = SpikeCounter(filters)
            replace(self, batches=[batch]).visit_spikes(layer, counter.add)
            part = counter.filtered()
            parts.append(part if reduce is None else replace(part, features=reduce(part.features)))
            if part.steps != parts[0].steps:
                raise _varying_calls(layer, part.steps, f"{parts[0].steps} as in the first one")
        samples = [len(part.features) // len(filters) for part in parts]
        rate = torch.stack([part.rate * count for part, count in zip(parts, samples, strict=True)]).sum(0) / sum(samples)
        return FilteredSpikes(torch.cat([part.features for part in parts]), rate, parts[0].steps)

    # -- inputs of a synapse -----------------------------------------------------------------------------------------------

    def record_inputs(self, layer: HiddenLayer, batch: StoredBatch) -> Calls:
        """Return the input of every call of a layer's synapse on a batch; in bytes if all are 0 or 1."""
        calls = Calls()
        watch(self.net, batch, self.forward, Taps(inputs={layer.synapse: partial(calls.add, in_bytes=True)}))
        return calls

    def collect_inputs(self, layer: HiddenLayer, layout: str, steps: int, subsets: Sequence[Tensor]) -> tuple[list[Tensor], int]:
        """Return inputs ``[T, k, *]``, or ``[1, k, *]`` if constant, of each set of samples (k,), and the number of all samples."""
        found: list[Tensor | None] = [None for _ in subsets]
        start = 0
        for batch in self.batches:
            inputs = self.record_inputs(layer, batch).join(layout, steps)[:, : batch.size]
            inputs = inputs[:1] if inputs.stride(0) == 0 else inputs
            stop = start + inputs.shape[1]
            for number, samples in enumerate(subsets):
                places = ((samples >= start) & (samples < stop)).nonzero()[:, 0]
                found[number] = values = _make_room(found[number], inputs, len(samples))
                values[:, places.to(values.device)] = inputs[:, (samples[places] - start).to(inputs.device)].to(values)
            start = stop
            del inputs  # before the next batch is recorded
        return [values for values in found if values is not None], start


def _varying_calls(layer: HiddenLayer, calls: int, needed: str) -> CaptureError:
    found = f"the neuron {layer.neuron_name!r} was called {calls} times in a forward pass"
    fix = "run all batches over the same number of steps, and give every layer a neuron of its own"
    return CaptureError(found, f"the same number of calls for every batch, {needed}", fix)


def _make_room(values: Tensor | None, inputs: Tensor, count: int) -> Tensor:
    """Return ``values`` of ``count`` samples in the type, and with the steps, that also hold the inputs of one more batch."""
    if values is None:
        return inputs.new_zeros(len(inputs), count, *inputs.shape[2:])
    if len(values) < len(inputs):
        values = values.expand(len(inputs), *values.shape[1:]).clone()
    return values if inputs.dtype is torch.uint8 else values.to(inputs.dtype)


# -- order of time and samples -------------------------------------------------------------------------------------------------


def steps_and_samples(shapes: Sequence[torch.Size], takes_sequence: bool) -> tuple[int, int]:
    """Return T and B by the shapes of a module's calls: one a step, or one of all steps; (0, 0) for other calls."""
    if not takes_sequence:
        return len(shapes), shapes[0][0]
    return (shapes[0][0], shapes[0][1]) if len(shapes) == 1 and len(shapes[0]) > 1 else (0, 0)


def possible_layouts(shapes: Sequence[torch.Size], steps: int, samples: int | None = None) -> list[str]:
    """Return the layouts that the shapes of a module's calls allow, for any number of samples if that is unknown."""
    sizes = {*shapes[0][:-1], shapes[0][0] // max(1, steps)} if samples is None else {samples}
    return [layout for layout in LAYOUTS if any(_fits(layout, shapes, steps, size) for size in sizes)]


def _fits(layout: str, shapes: Sequence[torch.Size], steps: int, samples: int) -> bool:
    rank, leading = len(shapes[0]), tuple(shapes[0][:-1])
    if layout == "steps":
        return len(shapes) == steps and rank == 2
    if len(shapes) != 1:
        return False
    if layout.startswith("folded"):
        return steps > 1 and leading == (steps * samples,)
    return leading == ((steps, samples) if layout == "time_first" else (samples, steps))


def time_first(layout: str, calls: Sequence[Tensor], num_steps: int) -> Tensor:
    """Join the tensors of all calls of a layer to ``[T, B, *]``."""
    if layout == "steps":
        return torch.stack(list(calls))
    (value,) = calls
    if layout == "batch_first":
        return value.movedim(1, 0)
    if layout == "folded":
        return value.reshape(num_steps, -1, *value.shape[1:])
    return value.reshape(-1, num_steps, *value.shape[1:]).movedim(1, 0) if layout == "folded_batch_first" else value


def find_layout(calls: Calls, currents: Tensor, make: Callable[[Tensor], Tensor]) -> str | None:
    """Return the layout in which ``make`` gives a neuron's currents ``[T, k, *]`` of its synapse's calls; None if none does."""
    possible = possible_layouts([call.shape for call in calls], len(currents))
    if len(calls) == 1 and calls[0].dim() == 2:
        possible.insert(0, CONSTANT)
    return next((layout for layout in possible if _gives(calls, layout, currents, make)), None)


def _gives(calls: Calls, layout: str, currents: Tensor, make: Callable[[Tensor], Tensor]) -> bool:
    """Return whether ``make`` gives these currents ``[T, k, *]`` of the calls in a layout, compared a few steps at a time."""
    if currents.dim() < 3:
        return False
    steps, samples = currents.shape[:2]
    still = currents.stride(0) == 0  # one step that stands for all, which a reduction would copy
    (low, high), rounding = torch.aminmax(currents[:1] if still else currents), 4 * torch.finfo(currents.dtype).eps
    rtol, atol = max(1e-4, rounding), max(1e-5, rounding) * max(float(high), -float(low))
    size = max(1, _COMPARED // currents[0].numel())
    for start in range(0, steps, size):
        rows = slice(start, start + size)
        # All steps together would take much memory.
        stepped = layout == "steps"
        part = torch.stack([call[:samples] for call in calls[rows]]) if stepped else calls.join(layout, steps)[rows, :samples]
        expected = currents[rows]
        if part.shape[:2] != expected.shape[:2]:
            return False
        try:
            made = make(part)
        except RuntimeError:  # a function that takes one number of samples
            return False
        if made.numel() != expected.numel():
            return False
        if not torch.allclose(made.reshape(expected.shape), expected.to(made), rtol=rtol, atol=atol):
            return False
    return True


# -- spikes, counted and filtered step by step ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerStats:
    """Firing of a hidden layer over all steps of the first samples: 10,000 and the remainder of their batch."""

    firing_rate: float  # spikes per neuron and step
    silent: float  # fraction of the neurons that never spike
    always_on: float  # fraction of the neurons that spike at every step of every sample
    neurons: int  # for a convolution channels times positions


class SpikeCounter:
    """Counter of the spikes of each unit of a layer, and of their sums weighted by ``filters`` (K, T) if there are some.

    With filters, steps of another shape than the first one's, or beyond the filters, only count as steps.
    """

    def __init__(self, filters: Tensor | None = None) -> None:
        self._filters: list[list[float]] | None = None if filters is None else filters.T.tolist()
        self._sums: list[Tensor] = []  # (B, M, *), of each filter
        self._steps = 0
        self.spikes: Tensor | None = None  # of each unit; of the last shape, if steps differ in it
        self.varies = False  # True once steps differ in the shape of a sample: no unit can be followed then
        self._observed = 0  # steps times samples
        self._earlier = [0, 0]  # spikes, and steps times samples times units, of other shapes
        self._buffer: Tensor | None = None

    def add(self, spikes: Tensor) -> None:
        """Count the spikes of one step, ``[B, *]``."""
        spikes = spikes.detach()
        if self._filters is not None and not self._weigh(self._filters, spikes):
            return
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

    def _weigh(self, filters: list[list[float]], spikes: Tensor) -> bool:
        """Add a step to the weighted sums; return whether it counts."""
        self._sums = self._sums or [torch.zeros_like(spikes, dtype=torch.float32) for _ in filters[0]]
        counts = self._steps < len(filters) and spikes.shape == self._sums[0].shape
        for total, weight in zip(self._sums, filters[self._steps], strict=True) if counts else ():
            if weight:
                total.add_(spikes, alpha=weight)
        self._steps += 1
        return counts

    def filtered(self) -> FilteredSpikes:
        """Return the weighted sums of all steps."""
        features = self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums, 1).flatten(0, 1)
        return FilteredSpikes(features, self.rates, self._steps)

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
