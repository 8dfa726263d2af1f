"""Passes over the data: features of the readout, own scores and firing of layers; currents and spikes of a hidden neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CaptureError, DataError, NetworkError, UnsupportedModuleError
from ..tables import IN_MEMORY, Tables
from .calls.activity import ActivityRecorder
from .calls.batches import Batch, lengths_of
from .calls.forward import Forward
from .calls.record import StoredBatch, Taps, record
from .calls.spikes import SpikeCounter
from .libraries import library_of
from .structure.layers import HiddenLayer


@dataclass(frozen=True)
class Captured:
    """Result of one pass over ``n`` samples, on the net's device; features are those of :class:`ActivityRecorder`."""

    features: Tensor  # [n, P] float32, [n, T, P] for scores at every step; [n, K, P] or [n, T, K, P] if outputs have K filters
    targets: Tensor
    scores: Tensor  # [n, C], the net's own, or [n, T, C] at every step
    firing: dict[str, SpikeCounter]  # of each hidden layer, by the name of its synapse
    batches: list[StoredBatch]  # the first ones
    num_steps: int  # of the longest batch
    spikes: Tensor | None = None  # [T, m, P], what entered the readout for the first samples, see ActivityRecorder.spikes
    lengths: Tensor | None = None  # [n], time steps of each sample, or of its batch; None if all are those of the map

    @property
    def range_of_steps(self) -> tuple[int, int]:
        """Time steps of the longest and of the shortest batch."""
        return self.num_steps, self.num_steps if self.lengths is None else int(self.lengths.min())


@dataclass(frozen=True)
class Storage:
    """Place and size of what a capture gathers."""

    samples: int | None = None  # at most so many; None for all
    stored: int = 1024  # the first batches are stored, at least one, until they hold so many samples
    tables: Tables = IN_MEMORY


def capture(
    net: nn.Module,
    batches: Iterable[Batch],
    recorder: ActivityRecorder,
    forward: Forward,
    storage: Storage | None = None,
    progress: Callable[[int], None] | None = None,
) -> Captured:
    """Run a private net, within :func:`quiet`, once over the data and gather features, scores and firing rates.

    After every batch ``progress`` gets the number of samples done.

    Raises:
        CaptureError: a batch has another number of time steps than the map, and the readout needs one number.
        DataError: there is no batch, or one with unequal numbers of samples; or there is no room for a temporary file.
        NetworkError: the net's features are not finite.
    """
    storage, readout = storage or Storage(), recorder.readout
    gathered = [RowBuffer(storage.tables) for _ in range(3)]
    stored: list[StoredBatch] = []
    lengths: list[Tensor] = []
    done = 0
    for batch in batches:
        target = batch.targets
        left = len(target) if storage.samples is None else min(len(target), storage.samples - done)
        kept = StoredBatch(batch.inputs, slice(done, done + left), batch.number)
        scores = readout.scores(recorder.run(net, kept, forward), lengths_of(batch.inputs))
        features = recorder.finish(batch.number, left)
        _check_rows(batch.number, features, scores, target)
        _check_finite(features, batch.number)
        steps = target.new_full((left,), recorder.num_steps, dtype=torch.int64)
        lengths.append(steps if recorder.lengths is None else recorder.lengths[:left].to(steps))
        for table, rows in zip(gathered, (features, target, scores), strict=True):
            table.append(rows[:left], expected=_expected(batches, len(target), storage.samples))
        if done < storage.stored or not stored:
            stored.append(kept)
        done += left
        if progress is not None:
            progress(done)
        if done == storage.samples:
            break
    if done == 0:
        raise DataError("a loader without a single sample", "at least one batch", "pass a loader over your data")
    features, targets, scores = (table.rows() for table in gathered)
    if readout.filters is not None:  # filter by filter in memory, so that the program of each copies nothing
        features = _filter_first(features, storage.tables)
    steps = torch.cat(lengths)
    longest = int(steps.max())
    unequal = None if int(steps.min()) == longest == recorder.net_map.num_steps else steps
    return Captured(features, targets, scores, recorder.firing, stored, longest, recorder.spikes(longest), unequal)


def _check_rows(number: int, features: Tensor, scores: Tensor, target: Tensor) -> None:
    """Refuse a batch whose features, scores and targets are not of the same samples."""
    if not len(features) == len(scores) == len(target):
        raise DataError(
            f"batch {number} has {len(target)} targets, but {len(features)} samples reach the readout and "
            f"{len(scores)} scores come out",
            "one target for every sample",
            "check the loader's targets, and that the batch is the axis after time",
        )


def _check_finite(features: Tensor, number: int) -> None:
    """Refuse a batch whose features are not finite."""
    # A sum first, which takes a twentieth of the time; large values may only add up to infinity.
    if not math.isfinite(features.sum()) and not bool(torch.isfinite(features).all()):
        found = f"NaN or infinite values entering the readout in batch {number}"
        raise NetworkError(found, "finite spikes", "check the net's hidden layers, and the inputs of that batch")


def _filter_first(features: Tensor, tables: Tables) -> Tensor:
    """Return features ``[n, ..., K, P]`` laid out filter by filter."""
    source = features.movedim(-2, 0)
    result = tables.empty(source.shape, source.dtype, source.device)
    for each, values in zip(result, source, strict=True):
        each.copy_(values)
    return result.movedim(0, -2)


def _expected(batches: object, batch_size: int, max_samples: int | None) -> int:
    """Estimate the number of samples, to allocate memory once; a wrong estimate only costs a copy."""
    try:
        total = len(batches) * batch_size  # type: ignore[arg-type]
    except TypeError:
        total = batch_size
    return total if max_samples is None else min(total, max_samples)


class RowBuffer:
    """Rows gathered batch by batch in one tensor, allocated once if their number was foreseen."""

    def __init__(self, tables: Tables = IN_MEMORY) -> None:
        self._tables = tables
        self._store: Tensor | None = None
        self._filled = 0

    def append(self, rows: Tensor, *, expected: int) -> None:
        """Add rows ``[n, *]`` of one shape and dtype; of ``expected`` rows, probably, in all."""
        if self._store is None:
            self._store = self._tables.empty((max(expected, len(rows)), *rows.shape[1:]), rows.dtype, rows.device)
        if rows.shape[1:] != self._store.shape[1:]:
            raise DataError(
                f"samples of shape {list(rows.shape[1:])} after samples of shape {list(self._store.shape[1:])}",
                "samples of one shape in all batches",
                "check the loader's batches",
            )
        needed = self._filled + len(rows)
        if needed > len(self._store):
            grown = self._tables.empty((max(needed, 2 * len(self._store)), *rows.shape[1:]), rows.dtype, rows.device)
            grown[: self._filled] = self._store[: self._filled]
            self._store = grown
        self._store[self._filled : needed] = rows
        self._filled = needed

    def rows(self) -> Tensor:
        """Return all rows so far, ``[n, *]``."""
        assert self._store is not None
        return self._store[: self._filled]


def neuron_currents(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    layer: HiddenLayer,
    forward: Forward,
    keep: int | None = None,
    most: float = math.inf,
) -> Tensor:
    """Record the currents that enter a hidden layer's neuron, ``[T, n, *]``, of all samples or the first ``keep`` of each batch.

    Currents that are the same at all steps are in memory once.

    Raises:
        CaptureError: the forward pass doesn't reach the neuron, or a varying number of times.
        UnsupportedModuleError: currents of more than ``most`` bytes.
    """
    neuron, library = layer.neuron, library_of(layer.neuron)
    own = library.synapse(neuron)
    axis = 1 if library.takes_sequences(neuron) else 0
    calls: list[Tensor] = []
    steps: list[int] = []
    stored = 0

    def first(current: Tensor) -> Tensor:
        return current if keep is None or current.ndim <= axis else current.narrow(axis, 0, min(keep, current.shape[axis]))

    def add(current: Tensor) -> None:
        value = first(current).detach()
        nonlocal stored
        still = bool(calls) and calls[-1] is calls[0] and torch.equal(value, calls[0])
        stored += 0 if still else value.nbytes
        if stored > most:
            found = f"hidden layer {layer.name!r} with currents of more than {most} bytes"
            raise UnsupportedModuleError(found, f"at most {most} bytes", "pass fewer samples or steps")
        calls.append(calls[0] if still else value.clone())

    if own is None or own.module is neuron:
        taps = Taps(inputs={neuron: add})
    else:
        # The synapse inside the neuron gives the currents of all steps in one call, time and batch folded.
        taps = Taps(
            inputs={neuron: lambda value: steps.append(len(value))},
            outputs={own.module: lambda current: calls.append(current.detach().unflatten(0, (steps[-1], -1)).clone())},
        )
    return _over_batches(net, batches, layer, forward, taps, calls)


def neuron_spikes(net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> Tensor:
    """Record the spikes that a hidden layer's neuron emits, ``[T, n, *]``, with the errors of :func:`neuron_currents`."""
    library = library_of(layer.neuron)
    calls: list[Tensor] = []
    taps = Taps(outputs={layer.neuron: lambda output: calls.append(library.spikes(output).detach().clone())})
    return _over_batches(net, batches, layer, forward, taps, calls)


def _over_batches(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, taps: Taps, calls: list[Tensor]
) -> Tensor:
    """Run the batches with taps that append a tensor to ``calls`` at every call, and join them over time and samples."""
    parts: list[Tensor] = []
    takes_sequence = library_of(layer.neuron).takes_sequences(layer.neuron)
    for batch in batches:
        calls.clear()
        record(net, batch, forward, taps)
        if not calls or (takes_sequence and len(calls) > 1) or (parts and not takes_sequence and len(calls) != len(parts[0])):
            raise CaptureError(
                f"the neuron {layer.neuron_name!r} was called {len(calls)} times in a forward pass",
                "the same number of calls for every batch, at least one",
                "run all batches over the same number of steps, and give every layer a neuron of its own",
            )
        joined = calls[0] if takes_sequence else _stacked(calls)
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


def _stacked(calls: Sequence[Tensor]) -> Tensor:
    """Return the tensors of all steps, ``[T, *]``; a view if they are one tensor."""
    if len(calls) > 1 and all(call is calls[0] for call in calls):
        return calls[0].expand(len(calls), *calls[0].shape)
    return torch.stack(list(calls))
